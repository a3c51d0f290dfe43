"""Publishing of a VLA run, its checkpoints and its LoRA adapter, compared with the trained policy."""

import inspect
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rocket_hf.commands import main as rocket_hf
from rocket_hf.evaluation.trained_policy import find_trained_policy, load_unmerged_checkpoint
from rocket_hf.export.policy_folder import write_rocket2_files
from rocket_hf.modeling.processing_rocket import RocketProcessor

from ..hub import policies
from ..hub.clients import run as run_client
from ..hub.policies import predict
from ..hub.server import LoopbackHub
from ..modeling.rocket2_tiny import random_rocket2
from .conftest import exported_weights, journal_records, write_policy

PROVENANCE = ("--base", "ada/base", "--license", "apache-2.0")
LORA = {"parts__heads": "full", "lora__rank": 4, "run__steps": 4, "run__save_every": 2, "run__ema": 0.5}


@pytest.fixture(scope="module")
def finished_run(tiny_run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished_run") / "run"
    tiny_run(out, **LORA)
    return out


def publish(*arguments: object) -> int:
    return rocket_hf(["publish", *map(str, arguments)])


def test_policies_published_from_run_and_last_checkpoint_equal_the_exported_policy(finished_run, tmp_path, capsys):
    """The weights are bit-identical: averaged, with merged LoRA, without alignment head."""
    assert publish(finished_run, "--to", tmp_path / "policy", *PROVENANCE) == 0
    assert "checked" in capsys.readouterr().out
    last = finished_run / "checkpoints" / "step-00000004"
    assert publish(last, "--to", tmp_path / "checkpoint", *PROVENANCE) == 0
    for name in ("policy", "checkpoint"):
        weights = load_file(tmp_path / name / "model.safetensors")
        assert weights.keys() == exported_weights(finished_run).keys()
        assert all(torch.equal(weights[key], value) for key, value in exported_weights(finished_run).items())
    earlier = find_trained_policy(finished_run / "checkpoints" / "step-00000002")
    assert earlier.checkpoint is not None and earlier.policy is None and earlier.run == finished_run


def test_interrupted_run_is_published_from_its_last_checkpoint(finished_run, tmp_path):
    stopped = shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(stopped / "policy")
    assert publish(stopped, "--to", tmp_path / "policy", *PROVENANCE) == 0
    one, other = (RocketProcessor.from_pretrained(folder) for folder in (finished_run / "policy", tmp_path / "policy"))
    assert one.statistics == other.statistics
    assert torch.equal(
        load_file(tmp_path / "policy" / "model.safetensors")["policy.action_out.weight"],
        exported_weights(finished_run)["policy.action_out.weight"],
    )


def test_card_describes_the_run(finished_run, tmp_path):
    options = ("--tag", "v1", "--success", "reach=9/10", "--conventions", "gripper 0 open, 1 closed", "--rate", 12.5)
    options += ("--dataset", "ada/data@v2", "--dataset", "ada/more")
    assert publish(finished_run, "--to", tmp_path / "policy", *PROVENANCE, *options) == 0
    card = (tmp_path / "policy" / "README.md").read_text()
    for words in (
        "| 1 | 2 | 6 |", "| -1 | 4 | 32 |", "Teacher: `vggt`, under apache-2.0.", "4 steps of 4 samples",
        "| `lora.rank` | `4` |", "| action/flow_matching |", "| alignment (mean) |", "| control rate | 12.5 Hz |",
        "(https://huggingface.co/datasets/ada/data) at `v2`", "(https://huggingface.co/datasets/ada/more)",
        "| reach | 90.0 % | 10 | 59.6 - 98.2 % |", "gripper 0 open, 1 closed", 'revision = "you/policy", "v1"',
    ):  # fmt: skip
        assert words in card, words
    assert str(finished_run.parent) not in card


def test_card_of_a_checkpoint_states_its_own_steps_and_error(tiny_run, tmp_path):
    """Validation is more frequent than saving. Each validation that improves saves its policy."""
    changes = {"run__steps": 6, "run__save_every": 6, "run__validate_every": 2, "run__keep": 9, "optimizer__lr": 0.05}
    outcome = tiny_run(tmp_path / "run", **LORA | changes)
    records = journal_records(tmp_path / "run")
    errors = {record["step"]: record["validation/error"] for record in records if "validation/error" in record}
    assert list(errors) == [2, 4, 6] and errors[2] < errors[6]
    best = min(errors, key=lambda step: errors[step])
    checkpoint = tmp_path / "run" / "checkpoints" / f"step-{best:08d}"
    assert f"of the last step, 6; the best policy, of step {best}, can be published from {checkpoint}" in outcome.stdout
    for source, step in ((checkpoint, best), (tmp_path / "run", 6)):
        assert publish(source, "--to", tmp_path / f"policy-{step}", *PROVENANCE) == 0
        card = (tmp_path / f"policy-{step}" / "README.md").read_text()
        assert f"{step} steps of 4 samples" in card
        assert f"| distance to held-out actions | {errors[step]:.4g} robot units |" in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--repo", "you/name", "--to", "x"), "either --repo OWNER/NAME or --to FOLDER"),
        (
            (),
            "either --repo OWNER/NAME or --to FOLDER; the base model on the Hub is unknown: pass --base OWNER/NAME; "
            "the license of this policy is unknown: pass --license",
        ),
        (("--to", "x", *PROVENANCE, "--dataset", "data"), "invalid dataset 'data': expected OWNER/NAME"),
        (("--to", "x"), "the base model on the Hub is unknown: pass --base OWNER/NAME"),
        (("--to", "x", "--base", "ada/base"), "the license of the base model ada/base is unknown: pass --license"),
        (("--to", "x", *PROVENANCE, "--success", "reach=11/10"), "reach: 11 of 10 episodes cannot have succeeded"),
        (("--to", "x", *PROVENANCE, "--success", "reach"), "--success takes SUITE=SUCCESSES/EPISODES"),
        (("--to", "x", "--base", "base", "--license", "mit"), "invalid base model 'base': expected OWNER/NAME"),
    ],
)
def test_missing_or_invalid_provenance_is_refused(finished_run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert publish(finished_run, *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("rocket-hf publish: ") and message in error
    assert not list(tmp_path.iterdir())


def test_local_folders_stay_local_in_any_working_directory(
    tiny_run, policies, image_dataset, tmp_path, monkeypatch, capsys
):
    """`models/base` and `data/arm` have the form of Hub ids, and publishing runs where they do not exist."""
    home = tmp_path / "home"
    shutil.copytree(policies("smolvla"), home / "models" / "base")
    shutil.copytree(image_dataset, home / "data" / "arm")
    monkeypatch.chdir(home)
    tiny_run(tmp_path / "run", policy="models/base", data__datasets=[{"id": "data/arm"}])
    monkeypatch.chdir(tmp_path)
    assert publish(tmp_path / "run", "--to", "x", "--license", "mit") == 2
    assert "the base model on the Hub is unknown: pass --base OWNER/NAME" in capsys.readouterr().err
    assert publish(tmp_path / "run", "--to", "x", *PROVENANCE) == 0
    card = Path("x", "README.md").read_text()
    assert "models/base" not in card and "data/arm" not in card and "control rate | 10 Hz" in card


def test_folders_that_cannot_be_published_are_refused(tmp_path, finished_run, capsys):
    assert publish(tmp_path, "--to", tmp_path / "x", *PROVENANCE) == 2
    assert "is neither a training run (no recipe.yaml) nor a checkpoint" in capsys.readouterr().err
    assert publish(finished_run / "policy", "--to", tmp_path / "x", *PROVENANCE, "--adapter") == 2
    assert "--adapter needs a training run or one of its checkpoints" in capsys.readouterr().err
    shutil.copytree(finished_run / "checkpoints" / "step-00000004", tmp_path / "a" / "b" / "step")
    assert publish(tmp_path / "a" / "b" / "step", "--to", tmp_path / "x", *PROVENANCE) == 2
    assert "is outside of its run" in capsys.readouterr().err


# The base, the policy and the adapter on the Hub: published by one process, loaded by another without this package

COMMANDS = """
import sys
from rocket_hf.commands import main

base, run = sys.argv[1:]
more = ["--license", "apache-2.0"]
assert main(["publish", base, "--repo", "ada/base", "--tag", "v0", "--base", "ada/first", *more]) == 0
assert main(["verify", "ada/base", "--revision", "v0"]) == 0
assert main(["publish", run, "--repo", "ada/arm", "--tag", "v1", "--base", "ada/base@v0"]) == 0  # license of its card
for _ in range(2):
    assert main(["publish", run, "--adapter", "--repo", "ada/lora", "--tag", "v1", "--base", "ada/base@v0", *more]) == 0
assert main(["publish", run, "--adapter", "--repo", "ada/no", "--base", "ada/arm", *more]) == 2
assert main(["verify", "ada/lora"]) == 0
assert main(["verify", "ada/none"]) == 2
from transformers import AutoModel
try:
    AutoModel.from_pretrained("ada/lora", trust_remote_code=True)
except ValueError as error:
    print("AutoModel:", error)
"""

LOAD_ADAPTER = """
import re, sys
sys.modules["rocket_hf"] = sys.modules["lerobot"] = None
from pathlib import Path
import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import save_file

card = Path(hf_hub_download("ada/lora", "README.md", revision="v1")).read_text()
(snippet,) = re.findall(r"```python\\n(.*?)```", card, flags=re.DOTALL)
exec(snippet.replace(".merge_and_unload()", ""))
assert chunk.shape == (1, 3, 5)
"""


@pytest.mark.slow
def test_published_adapter_on_its_base_equals_the_trained_policy_in_clean_process(tiny_run, tmp_path):
    """The code of the adapter's card, in a process without this package, predicts the actions of the trained model."""
    first = write_policy(tmp_path / "first", "smolvla")
    base, out = tmp_path / "base", tmp_path / "run"
    assert publish(first, "--to", base, "--base", "ada/first", "--license", "apache-2.0") == 0
    tiny_run(out, **LORA, policy=str(base), robot__chunk_size=3)
    with LoopbackHub() as hub:
        code, printed, errors = run_client(hub.url, COMMANDS, base, out, home=tmp_path / "home")
        assert code == 0, errors
        assert f"verified   ada/base at {hub.model('ada/base').tags['v0']}" in printed
        assert f'revision="{hub.model("ada/arm").tags["v1"]}"' in printed
        assert "unchanged  ada/lora" in printed and len(hub.model("ada/lora").commits) == 2
        assert "is not the file that the adapter was trained on" in errors
        assert "the repository ada/none does not exist" in errors
        assert f"verified   ada/lora at {hub.model('ada/lora').tags['v1']}" in printed
        assert (
            "AutoModel: ada/lora is an adapter" in printed and 'PeftModel.from_pretrained(base.for_robot("' in printed
        )
        assert "license: apache-2.0" in hub.model("ada/arm").head.files["README.md"].data.decode()
        lora = {path: file.data for path, file in hub.model("ada/lora").head.files.items()}
        config = json.loads(lora["adapter_config.json"])
        assert config["auto_mapping"] is None and config["base_model_name_or_path"] == "ada/base"
        assert config["revision"] == hub.model("ada/base").tags["v0"]
        assert "policy.action_out" in config["modules_to_save"]
        assert str(tmp_path).encode() not in b"".join(lora.values())

        actions = tmp_path / "actions.safetensors"
        save_actions = "\nsave_file({'actions': predict(policy.get_base_model(), processor).contiguous()}, sys.argv[1])"
        script = LOAD_ADAPTER + "\nfrom typing import Any\n" + inspect.getsource(policies.predict) + save_actions
        code, _, errors = run_client(hub.url, script, actions, home=tmp_path / "other_home")
        assert code == 0, errors
    model, processor = load_unmerged_checkpoint(find_trained_policy(out))
    torch.testing.assert_close(load_file(actions)["actions"], predict(model, processor), atol=0, rtol=0)


# The way from the command to the commit, by a trace of the function calls. Code that runs on import does not count.

TRACE = """
import json, sys
from rocket_hf.commands import main

def is_import(frame):
    while frame is not None and frame.f_code.co_name != "<module>":
        frame = frame.f_back
    return frame is not None and frame.f_globals["__name__"] != "__main__"

def record(code, offset):
    frame = sys._getframe(1)
    name = frame.f_globals.get("__name__", "")
    if code.co_name == "create_commit":
        sys.monitoring.set_events(tool, 0)
    elif name.startswith("rocket_hf."):
        if is_import(frame):
            return
        names.append(name)
    return sys.monitoring.DISABLE  # for this function

tool, start = sys.monitoring.PROFILER_ID, sys.monitoring.events.PY_START
sys.monitoring.use_tool_id(tool, "trace")
sys.monitoring.register_callback(tool, start, record)
policy, *arguments = sys.argv[1:]
assert main(["publish", policy, "--repo", "ada/base", "--base", "ada/first", "--license", "mit"]) == 0
for line in arguments:
    names = []
    sys.monitoring.restart_events()
    sys.monitoring.set_events(tool, start)
    assert main(["publish", *json.loads(line)]) == 0
    print(json.dumps(names))
"""
MAX_FILES, MAX_ROOMS = 10, 4
# Rooms of the policy, of its run and of what it was trained with. Publishing only loads it and reads their facts.
LOADED_ROOMS = ("modeling", "training", "evaluation", "teachers", "convert")


def publishing_files(names: list[str]) -> set[str]:
    """Return the files of a trace as ROOM.FILE, without base files, loaded rooms, and the parsers of all commands."""
    after_parsing = names[names.index("rocket_hf.hub") :]  # `rocket-hf publish` first checks the repository's name
    files = {name.removeprefix("rocket_hf.") for name in [*after_parsing, "rocket_hf.commands.publish"]}
    return {file for file in files if "." in file and file.split(".")[0] not in LOADED_ROOMS}


@pytest.fixture(scope="module")
def published(finished_run, policies, tmp_path_factory) -> Iterator[tuple[LoopbackHub, list[set[str]]]]:
    """Publish a VLA policy, its adapter and a ROCKET-2 policy; return the Hub and the files that ran for each."""
    home = tmp_path_factory.mktemp("home")
    rocket2 = home / "rocket2"
    random_rocket2().for_inference().save_pretrained(rocket2)
    write_rocket2_files(rocket2, random_rocket2().config)
    sources = ((finished_run, "policy"), (finished_run, "adapter", "--adapter"), (rocket2, "rocket2"))
    commands = [
        json.dumps([str(source), "--repo", f"ada/{name}", "--base", "ada/base", "--license", "mit", *more])
        for source, name, *more in sources
    ]
    with LoopbackHub() as hub:
        code, printed, errors = run_client(hub.url, TRACE, policies("smolvla"), *commands, home=home)
        assert code == 0, errors
        yield hub, [publishing_files(json.loads(line)) for line in printed.splitlines() if line.startswith("[")]


def test_few_files_run_between_the_command_and_the_commit(published):
    traces = published[1]
    assert len(traces) == 3
    for files in traces:
        assert {"commands.publish", "publishing.package", "publishing.upload", "hub_cards.cards"} <= files
        assert len(files) <= MAX_FILES, sorted(files)
        assert len({file.split(".")[0] for file in files}) <= MAX_ROOMS, sorted(files)


AUTO_MODEL_ON_ADAPTER = """
import sys
sys.modules["rocket_hf"] = sys.modules["lerobot"] = None
if sys.argv[1] == "without PEFT":
    sys.modules["peft"] = None
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModel
from transformers.utils import is_peft_available

assert is_peft_available() == (sys.argv[1] == "with PEFT")
for source in ("ada/adapter", snapshot_download("ada/adapter")):
    assert AutoConfig.from_pretrained(source, trust_remote_code=True).action_dim == int(sys.argv[2])
    try:
        AutoModel.from_pretrained(source, trust_remote_code=True)
    except ValueError as error:
        print(str(error).replace(source, "SOURCE"))
"""


@pytest.mark.parametrize("environment", [pytest.param("with PEFT", marks=pytest.mark.slow), "without PEFT"])
def test_automodel_on_an_adapter_explains_how_to_load_it(published, finished_run, tmp_path, environment):
    dim = json.loads((finished_run / "policy" / "config.json").read_text())["action_dim"]
    code, printed, errors = run_client(
        published[0].url, AUTO_MODEL_ON_ADAPTER, environment, dim, home=tmp_path / "user"
    )
    assert code == 0, errors
    assert len(printed.splitlines()) == 2, printed
    for line in printed.splitlines():
        assert line.startswith("SOURCE is an adapter, ") and 'AutoModel.from_pretrained("ada/base", revision=' in line
        assert 'PeftModel.from_pretrained(base.for_robot("SOURCE"), "SOURCE")' in line
