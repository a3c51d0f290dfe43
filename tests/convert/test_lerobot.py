"""Folders that lerobot itself wrote convert, load and give lerobot's actions; damaged ones stop with the reason."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from rocket_hf.bench.lerobot_tiny import CAMERAS, lerobot_policy
from rocket_hf.commands import main
from rocket_hf.modeling.configuration_pi0 import Pi0Config
from rocket_hf.modeling.configuration_smolvla import SmolVLAConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.tiny import PI0_SIZES, SMOLVLA_SIZES, character_tokenizer, tiny_config, tiny_statistics

pytestmark = pytest.mark.needs_lerobot
# Tiny, but with heads of the published widths, which no tensor's shape tells.
PI = PI0_SIZES | {"vision_width": 144, "vision_heads": 2}
SMOL = SMOLVLA_SIZES | {"head_dim": 64, "vision_width": 128, "vision_heads": 2}
POLICIES = {
    "pi0": lambda: Pi0Config(variant="pi0", **PI),
    "pi05": lambda: Pi0Config(variant="pi05", **PI),
    "smolvla": lambda: SmolVLAConfig(**SMOL),
}


@pytest.fixture(params=POLICIES)
def theirs(request):
    torch.manual_seed(0)
    policy = lerobot_policy(tiny_config(policy_config=POLICIES[request.param](), alignment=None))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            middle = 1 if request.param == "smolvla" and "norm" in name else 0
            parameter.normal_(middle, 0.2 if parameter.dim() > 1 else 0.1)
    return policy


@pytest.fixture
def source(theirs, tmp_path, monkeypatch):
    """A folder as lerobot-train leaves it: the policy, its pre- and its postprocessor."""
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.processor import tokenizer_processor

    monkeypatch.setattr(tokenizer_processor.AutoTokenizer, "from_pretrained", lambda name: character_tokenizer())
    folder = tmp_path / "lerobot"
    theirs.save_pretrained(folder)
    statistics = tiny_statistics(tiny_config())
    stats = {"observation.state": statistics["state"], "action": statistics["action"]}
    stats = {key: {name: torch.tensor(value) for name, value in each.items()} for key, each in stats.items()}
    processors = make_pre_post_processors(theirs.config, dataset_stats=stats)
    for processor in processors:
        processor.save_pretrained(folder)
    monkeypatch.undo()
    theirs.processors = processors
    character_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return folder


def convert(source, destination, *more) -> int:
    kind = json.loads((source / "config.json").read_text())["type"]
    tokenizer = str(source.parent / "tokenizer")
    return main(["convert", f"lerobot-{kind}", str(source), str(destination), "--tokenizer", tokenizer, *more])


def test_from_robot_units_to_robot_units_the_actions_are_lerobots(theirs, source, tmp_path, capsys):
    assert convert(source, tmp_path / "ours") == 0
    printed = capsys.readouterr().out
    ours = RocketForActionPrediction.from_pretrained(tmp_path / "ours")
    processor = RocketProcessor.from_pretrained(tmp_path / "ours")
    assert f"{ours.num_parameters():,} parameters" in printed

    draw = torch.Generator().manual_seed(0)
    images = {name: torch.rand(3, 40, 64, generator=draw) for name in ("front", "wrist")}
    state, noise = torch.randn(6, generator=draw), torch.randn(1, 4, 8, generator=draw)
    before, after = theirs.processors
    observation = dict(zip(CAMERAS, images.values(), strict=True)) | {"observation.state": state, "task": "open it"}
    expected = after(theirs.predict_action_chunk(before(observation), noise=noise))

    inputs = processor(images=images, task="open it", state=state)
    actions = processor.unnormalize_actions(ours.predict_action_chunk(**inputs, noise=noise))
    torch.testing.assert_close(actions, expected, atol=1e-5, rtol=1e-5)


def test_the_report_accounts_for_every_tensor(theirs, source, tmp_path):
    assert convert(source, tmp_path / "ours") == 0
    report = json.loads((tmp_path / "ours" / "conversion.json").read_text())
    names = load_file(source / "model.safetensors").keys()
    used = {name for sources in report["mapped"].values() for name in sources}
    assert used | report["dropped"].keys() == set(names)
    assert report["tensors"] == len(report["mapped"]) and report["revision"] == "local"
    assert str(tmp_path) not in json.dumps(report)


def test_bfloat16_and_shards(source, tmp_path, monkeypatch):
    from rocket_hf.convert import write

    monkeypatch.setattr(write, "SHARD_BYTES", 2**17)
    assert convert(source, tmp_path / "ours", "--dtype", "bfloat16") == 0
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 1
    ours = RocketForActionPrediction.from_pretrained(tmp_path / "ours")
    assert ours.dtype == torch.bfloat16


def drop_one(folder):
    edit(folder, lambda weights: weights.pop("model.action_in_proj.bias"))


def add_one(folder):
    edit(folder, lambda weights: weights.update({"model.surprise": torch.zeros(1)}))


def bend_one(folder):
    edit(folder, lambda weights: weights.update({"model.action_in_proj.bias": torch.zeros(3)}))


def cut_off(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def forget_the_processor(folder):
    (folder / "policy_preprocessor.json").unlink()


def forget_the_statistics(folder):
    next(folder.glob("policy_preprocessor_step_*_normalizer_processor.safetensors")).unlink()


def of_another_type(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"type": "', '"type": "another-'))


def edit(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (drop_one, "lacks 1 tensors of the policy, first the one for policy.action_in.bias"),
        (add_one, "has the tensor model.surprise, which this family does not know"),
        (bend_one, "model.action_in_proj.bias has the shape (3,), the policy's policy.action_in.bias has ("),
        (cut_off, "model.safetensors is damaged or cut off"),
        (forget_the_processor, "policy_preprocessor.json is missing"),
        (forget_the_statistics, "normalizer_processor.safetensors is missing"),
    ],
)
def test_a_damaged_folder_stops_with_the_reason_and_leaves_nothing(source, tmp_path, capsys, damage, sentence):
    damage(source)
    assert convert(source, tmp_path / "out" / "ours") == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_folder_of_another_policy_is_refused(source, tmp_path, capsys):
    kind = json.loads((source / "config.json").read_text())["type"]
    of_another_type(source)
    arguments = ["convert", f"lerobot-{kind}", str(source), str(tmp_path / "ours")]
    assert main(arguments) == 2
    assert f"this family reads '{kind}'" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(source, tmp_path, capsys, monkeypatch):
    from rocket_hf.convert import write

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "save_file", full)
    assert convert(source, tmp_path / "out" / "ours") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_settings_that_would_change_the_actions_are_refused(source, tmp_path, capsys):
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"min_period": 1.0}))
    assert convert(source, tmp_path / "ours") == 2
    assert "config.json sets min_period=1.0; only 0.004 is supported" in capsys.readouterr().err


def test_a_repository_and_a_revision_of_the_hub(source, tmp_path):
    """Through huggingface_hub's own client, offline, from its cache: the commit becomes part of the report."""
    kind, commit = json.loads((source / "config.json").read_text())["type"], "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "home" / "hub" / "models--you--robot"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "v1").write_text(commit)
    (repository / "snapshots").mkdir()
    source.rename(repository / "snapshots" / commit)
    arguments = ["convert", f"lerobot-{kind}", "you/robot@v1", str(tmp_path / "ours")]
    arguments += ["--tokenizer", str(tmp_path / "tokenizer")]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "rocket_hf.commands", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "ours" / "conversion.json").read_text())
    assert (report["source"], report["revision"]) == ("you/robot", commit)


def test_back_to_lerobot_its_own_class_acts_the_same(theirs, source, tmp_path):
    """lerobot's strict loading of our folder, its own processors read from it, the same actions in robot units."""
    from lerobot.policies.factory import make_pre_post_processors

    assert convert(source, tmp_path / "ours") == 0
    tokenizer = str(source.parent / "tokenizer")
    arguments = ["convert", "to-lerobot", str(tmp_path / "ours"), str(tmp_path / "back"), "--tokenizer", tokenizer]
    assert main(arguments) == 0

    kind = theirs.config.type
    settings = RocketForActionPrediction.from_pretrained(tmp_path / "ours").config
    again = lerobot_policy(settings)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.fill_(float("nan"))
    again.load_state_dict(load_file(tmp_path / "back" / "model.safetensors"), strict=True)
    config = type(theirs.config).from_pretrained(tmp_path / "back")
    assert config.type == kind and config.image_features.keys() == theirs.config.image_features.keys()
    before, after = make_pre_post_processors(config, pretrained_path=str(tmp_path / "back"))
    observation = {name: torch.rand(3, 40, 64) for name in CAMERAS}
    observation |= {"observation.state": torch.randn(6), "task": "open it"}
    noise = torch.randn(1, 4, 8)
    first, last = theirs.processors
    expected = last(theirs.predict_action_chunk(first(dict(observation)), noise=noise))
    actions = after(again.predict_action_chunk(before(dict(observation)), noise=noise))
    torch.testing.assert_close(actions, expected, atol=1e-6, rtol=1e-5)


def test_a_source_that_is_not_there(tmp_path, capsys):
    assert main(["convert", "lerobot-pi0", str(tmp_path / "nothing"), str(tmp_path / "ours")]) == 2
    assert "neither a local folder nor a Hub repository" in capsys.readouterr().err
