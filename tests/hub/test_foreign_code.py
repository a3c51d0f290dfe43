"""Code that is planted in a folder is never executed, whichever command reads the folder and whatever is answered.

All commands run in one real process, whose standard input answers every question with "y".
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from rocket_hf.commands import main
from rocket_hf.errors import UserError
from rocket_hf.export.policy_folder import write_processor
from rocket_hf.foreign_code import check_files_inside, check_no_foreign_code
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.teachers.load import load_teacher
from rocket_hf.tiny import character_tokenizer
from rocket_hf.tiny_dataset import write_tiny_dataset
from tests.tiny_vggt import write_tiny_vggt

from ..convert.test_openvla import heads, openvla_weights, statistics, write_shards
from .policies import tiny_policy, write_published

pytestmark = pytest.mark.needs_lerobot
MARKER = "executed"
MODEL_ENTRY = {"AutoConfig": "planted.Planted", "AutoModel": "planted.Planted"}
TOKENIZER_ENTRY = {"AutoTokenizer": ["planted.Planted", "planted.Planted"], "AutoProcessor": "planted.Planted"}
PLANTED = """
from pathlib import Path
Path({marker!r}).touch()
class Planted:
    pass
"""

RUN_ALL = """
import contextlib, io, json, sys
from rocket_hf.commands import main
from rocket_hf.training.train import main as train  # what `rocket-hf train` starts in another process

results = []
for words in json.loads(sys.argv[1]):
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            code = train(words[1:]) if words[0] == "train" else main(words)
        except SystemExit as end:
            code = end.code
    results.append([code, output.getvalue()])
print(json.dumps(results))
"""


def edit_json(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | values))


def plant(folder: Path, name: str, key: str = "auto_map", entry: Any = None, subfolder: str = "") -> Path:
    """Write code that leaves a mark when it is executed, and an entry that names it in a JSON file of the folder."""
    place = folder / subfolder
    place.mkdir(exist_ok=True)
    (folder / "planted.py").write_text(PLANTED.format(marker=str(folder / MARKER)))
    (place / "planted.py").write_text(PLANTED.format(marker=str(folder / MARKER)))
    edit_json(place / name, **{key: entry or (MODEL_ENTRY if name == "config.json" else TOKENIZER_ENTRY)})
    return folder


@dataclass
class Sources:
    """Valid folders of each kind; every case plants code in a copy of one."""

    policy: Path
    dataset: Path
    teacher: Path
    vision_teacher: Path
    tokenizer: Path
    openvla: Path
    oft: Path
    root: Path

    def copy(self, source: Path, name: str) -> Path:
        return shutil.copytree(source, self.root / name)


@dataclass
class Case:
    folder: Path  # in which code was planted
    words: list[str]
    is_refused: bool = True

    @property
    def marker(self) -> Path:
        return self.folder / MARKER


def write_openvla(folder: Path, is_oft: bool) -> Path:
    folder.mkdir()
    write_shards(folder, openvla_weights())
    text = {"model_type": "llama", "hidden_size": 128, "num_attention_heads": 2, "rms_norm_eps": 1e-5}
    edit_json(
        folder / "config.json", model_type="openvla", n_action_bins=16, pad_to_multiple_of=64, text_config=text,
        norm_stats=statistics("a"), auto_map={"AutoConfig": "owner/repo--planted.Planted"},
    )  # fmt: skip
    character_tokenizer().save_pretrained(folder)
    if is_oft:
        for stem, weights in heads().items():
            torch.save(weights, folder / f"{stem}--150000_checkpoint.pt")
    return folder


def write_vision_teacher(folder: Path) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8, "image_size": 48}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    edit_json(folder / "preprocessor_config.json", image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Sources:
    root = tmp_path_factory.mktemp("planted")
    character_tokenizer().save_pretrained(root / "tokenizer")
    return Sources(
        policy=write_published(root / "policy", tiny_policy()),
        dataset=write_tiny_dataset(root / "dataset", episodes=2, frames=4),
        teacher=write_tiny_vggt(root / "teacher"),
        vision_teacher=write_vision_teacher(root / "vision_teacher"),
        tokenizer=root / "tokenizer",
        openvla=write_openvla(root / "openvla", is_oft=False),
        oft=write_openvla(root / "oft", is_oft=True),
        root=root,
    )


def train_words(sources: Sources, **changed: Path) -> list[str]:
    paths = {"policy": sources.policy, "dataset": sources.dataset, "teacher": sources.teacher} | changed
    out = sources.root / f"run_{len(list(sources.root.iterdir()))}"
    words = ["train", "--recipe", "tiny"]
    words += [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    return [*words, "--out", str(out), "--dry-run"]


def planted_cases(sources: Sources) -> dict[str, Case]:
    """Return the cases: for each kind of folder, the commands that read it."""
    cases: dict[str, Case] = {}

    def add(name: str, folder: Path, *words: object, is_refused: bool = True) -> None:
        cases[name] = Case(folder, [str(word) for word in words], is_refused)

    out = sources.root / "out"
    publish = ("--to", out, "--base", "ada/base", "--license", "mit")
    entries: dict[str, Callable[[Path], Path]] = {
        "config": lambda folder: plant(folder, "config.json"),
        "tokenizer": lambda folder: plant(folder, "tokenizer_config.json"),
        "processor": lambda folder: plant(folder, "processor_config.json", entry={"AutoProcessor": "planted.Planted"}),
        "pipeline": lambda folder: plant(folder, "config.json", "custom_pipelines", {"x": {"impl": "planted.Planted"}}),
        "subfolder": lambda folder: plant(folder, "config.json", subfolder="inner"),
        "remote": lambda folder: plant(folder, "tokenizer_config.json", entry={"AutoTokenizer": [None, "o/r--p.P"]}),
    }
    for name, entry in entries.items():
        folder = entry(sources.copy(sources.policy, f"policy_{name}"))
        add(f"verify policy: {name}", folder, "verify", folder)
        add(f"verify policy, trusted: {name}", folder, "verify", folder, "--trust-remote-code")
        add(f"publish policy: {name}", folder, "publish", folder, *publish)
        add(f"train from base: {name}", folder, *train_words(sources, policy=folder))
    folder = cases["train from base: tokenizer"].folder
    add("eval policy", folder, "eval", folder, "--env", "metaworld", "--tasks", "reach-v3", "--out", out)
    add("layers of policy", folder, "layers", folder, sources.dataset, "--teacher", sources.teacher, "--out", out)
    add("adapt policy", folder, "adapt", folder, "--dataset", sources.dataset, "--out", out)
    add("convert policy to lerobot", folder, "convert", "to-lerobot", folder, out)

    dataset = plant(sources.copy(sources.dataset, "planted_dataset"), "config.json", subfolder="meta")
    add("train on dataset", dataset, *train_words(sources, dataset=dataset))
    cache = ("--out", out, "--layers", "2,-1", "--device", "cpu", "--workers", "0")
    add("cache of dataset", dataset, "cache", "build", dataset, "--teacher", sources.teacher, *cache)
    add("analyze depth of dataset", dataset, "analyze", "depth", sources.policy, "--dataset", dataset, "--out", out)
    for name in ("teacher", "vision_teacher"):
        teacher = plant(sources.copy(getattr(sources, name), f"planted_{name}"), "config.json")
        add(f"train with {name}", teacher, *train_words(sources, teacher=teacher))
        add(f"cache with {name}", teacher, "cache", "build", sources.dataset, "--teacher", teacher, *cache)
    built = sources.root / "planted_cache"
    built.mkdir()
    (built / "manifest.json").write_text("{}")
    plant(built, "config.json")
    add("info of cache", built, "cache", "info", built)
    add("verify cache", built, "cache", "verify", built)

    run = sources.root / "planted_run"
    shutil.copytree(sources.policy, run / "policy")
    (run / "recipe.yaml").write_text("name: x\n")
    plant(run, "tokenizer_config.json", subfolder="policy")
    add("publish run", run, "publish", run, *publish)
    add("eval run", run, "eval", run, "--env", "metaworld", "--tasks", "reach-v3", "--out", out)

    adapter = sources.copy(sources.policy, "planted_adapter")
    (adapter / "config.json").unlink()
    mapping = {"base_model_class": "Planted", "parent_library": "planted"}
    base = {"base_model_name_or_path": "ada/base", "revision": "c" * 40, "peft_type": "LORA", "auto_mapping": mapping}
    edit_json(adapter / "adapter_config.json", **base)
    (adapter / "planted.py").write_text(PLANTED.format(marker=str(adapter / MARKER)))
    add("verify adapter", adapter, "verify", adapter)

    tokenizer = plant(sources.copy(sources.tokenizer, "planted_tokenizer"), "tokenizer_config.json")
    for family in ("lerobot-pi0", "lerobot-pi05", "lerobot-smolvla", "rocket2"):
        source = plant(sources.copy(sources.tokenizer, f"planted_{family}"), "config.json")
        add(f"convert {family}", source, "convert", family, source, out)
    # Public checkpoints of these families name code. It is neither needed nor executed, and the policy has none of it.
    options = ("--heads", "dino=1", "--heads", "siglip=1")
    for family, kind in (("openvla", "openvla"), ("openvla-oft", "oft")):
        source = plant(sources.copy(getattr(sources, kind), f"planted_{family}"), "tokenizer_config.json")
        plant(source, "config.json")
        plant(source, "processor_config.json")
        converted = sources.root / f"converted_{family}"
        add(f"convert {family}", source, "convert", family, source, converted, *options, is_refused=False)
        converted = sources.root / f"converted_{family}_tokenizer"
        words = ("convert", family, getattr(sources, kind), converted, *options, "--tokenizer", tokenizer)
        add(f"convert {family} with tokenizer", tokenizer, *words, is_refused=False)
    return cases


@pytest.fixture(scope="module")
def results(sources) -> dict[str, tuple[Case, int, str]]:
    cases = planted_cases(sources)
    words = json.dumps([case.words for case in cases.values()])
    command = [sys.executable, "-c", RUN_ALL, words]
    done = subprocess.run(
        command, input="y\n" * 1000, cwd=sources.root, capture_output=True, text=True, env=offline(), timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = json.loads(done.stdout.splitlines()[-1])
    return {name: (case, *outcome) for (name, case), outcome in zip(cases.items(), outcomes, strict=True)}


def offline() -> dict[str, str]:
    import os

    return os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def test_no_command_executes_planted_code(results):
    assert len(results) > 35
    assert {name for name, (case, *_) in results.items() if case.marker.exists()} == set()


def test_commands_refuse_folders_that_name_foreign_code(results):
    wrong = {
        name: output[-300:]
        for name, (case, code, output) in results.items()
        if case.is_refused and not (code == 2 and "names code that does not belong to this package" in output)
    }
    assert wrong == {}


def test_converted_policies_contain_no_code_of_their_source(results):
    for name, (case, code, output) in results.items():
        if not case.is_refused:
            assert code == 0, (name, output)
            converted = Path(case.words[3])
            check_no_foreign_code(converted)
            assert not (converted / "planted.py").exists()


def test_processor_never_executes_code_of_its_tokenizer(sources):
    """The classes that are published ignore a foreign entry even with `trust_remote_code`, and never save one."""
    folder = plant(sources.copy(sources.policy, "trusted"), "tokenizer_config.json")
    processor = RocketProcessor.from_pretrained(folder, trust_remote_code=True)
    assert not (folder / MARKER).exists()
    write_processor(sources.root, processor)
    assert "auto_map" not in json.loads((sources.root / "tokenizer_config.json").read_text())


def test_plugin_refuses_policy_that_names_foreign_code(sources):
    from lerobot_policy_rocket.modeling_rocket import LeRobotRocketPolicy

    folder = plant(sources.copy(sources.policy, "plugin"), "tokenizer_config.json")
    with pytest.raises(UserError, match="names code that does not belong"):
        LeRobotRocketPolicy.from_pretrained(folder)
    assert not (folder / MARKER).exists()


def test_verify_executes_changed_code_only_on_request(sources, capsys):
    folder = sources.copy(sources.policy, "changed")
    code = folder / "modeling_rocket.py"
    code.write_text(code.read_text() + PLANTED.format(marker=str(folder / MARKER)))
    assert main(["verify", str(folder)]) == 0
    assert not (folder / MARKER).exists()
    assert "not run    modeling_rocket.py: this code differs from that of rocket-hf" in capsys.readouterr().out
    assert main(["verify", str(folder), "--trust-remote-code"]) == 0
    assert (folder / MARKER).exists() and "not run" not in capsys.readouterr().out
    assert main(["verify", str(sources.policy)]) == 0 and "not run" not in capsys.readouterr().out


def test_code_in_a_subfolder_is_refused(sources, capsys):
    folder = sources.copy(sources.policy, "with_subfolder")
    (folder / "inner").mkdir()
    (folder / "inner" / "more.py").write_text("")
    assert main(["verify", str(folder)]) == 2
    assert "inner/more.py is code in a subfolder" in capsys.readouterr().err


def test_teacher_that_is_an_adapter_is_refused(sources):
    folder = sources.copy(sources.vision_teacher, "adapter_teacher")
    edit_json(folder / "adapter_config.json", base_model_name_or_path="../teacher")
    with pytest.raises(UserError, match="it is an adapter"):
        load_teacher(str(folder))


def test_own_code_is_accepted(sources):
    check_no_foreign_code(sources.policy)
    check_no_foreign_code(Path(__file__).parents[1] / "published_by_0_1_0")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors.index.json", {"weight_map": {"a": "../other/model.safetensors"}}),
        ("model.safetensors.index.json", {"weight_map": {"a": "/etc/passwd"}}),
        ("policy_preprocessor.json", {"steps": [{"state_file": "../../secret.safetensors"}]}),
        ("info.json", {"video_path": "videos/../../{video_key}.mp4"}),
    ],
)
def test_names_of_files_outside_of_the_folder_are_refused(name, content, tmp_path):
    (tmp_path / name).write_text(json.dumps(content))
    for check in (check_no_foreign_code, check_files_inside):
        with pytest.raises(UserError, match="names a file outside of its folder"):
            check(tmp_path)


@pytest.mark.parametrize("text", ['{"auto\\u005fmap": {"AutoModel": "planted.P"}}', '[{"auto_map": "planted.P"}]'])
def test_entries_are_found_at_any_depth_and_in_any_spelling(text, tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "any.json").write_text(text)
    with pytest.raises(UserError, match="names code that does not belong"):
        check_no_foreign_code(tmp_path)


def test_deeply_nested_json_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"auto_map":' + "[" * 200_000)
    with pytest.raises(UserError, match="nested too deeply"):
        check_no_foreign_code(tmp_path)
