"""A run's end and its checkpoints, published: the trained policy bit for bit, and its adapter on the base's commit."""

import inspect
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rocket_hf.commands import main as rocket_hf
from rocket_hf.evaluation.trained_policy import find_origin, load_adapted
from rocket_hf.modeling.processing_rocket import RocketProcessor

from ..hub import policies
from ..hub.clients import run as run_client
from ..hub.policies import predict
from ..hub.server import LoopbackHub
from .conftest import exported, write_policy

TOLD = ("--base", "ada/base", "--license", "apache-2.0")
LORA = {"parts__heads": "full", "lora__rank": 4, "run__steps": 4, "run__save_every": 2, "run__ema": 0.5}


@pytest.fixture(scope="module")
def finished(tiny_run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    tiny_run(out, **LORA)
    return out


def publish(*arguments: object) -> int:
    return rocket_hf(["publish", *map(str, arguments)])


def test_a_run_and_its_last_checkpoint_are_the_same_policy(finished, tmp_path, capsys):
    """Bit for bit what the run exported: LoRA merged, the moving average, no head."""
    assert publish(finished, "--to", tmp_path / "policy", *TOLD) == 0
    assert "checked" in capsys.readouterr().out
    last = finished / "checkpoints" / "step-00000004"
    assert publish(last, "--to", tmp_path / "checkpoint", *TOLD) == 0
    for name in ("policy", "checkpoint"):
        weights = load_file(tmp_path / name / "model.safetensors")
        assert weights.keys() == exported(finished).keys()
        assert all(torch.equal(weights[key], value) for key, value in exported(finished).items())
    earlier = find_origin(finished / "checkpoints" / "step-00000002")
    assert earlier.checkpoint is not None and earlier.policy is None and earlier.run == finished


def test_a_run_that_was_stopped_is_published_from_its_checkpoint(finished, tmp_path):
    stopped = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(stopped / "policy")
    assert publish(stopped, "--to", tmp_path / "policy", *TOLD) == 0
    one, other = (RocketProcessor.from_pretrained(folder) for folder in (finished / "policy", tmp_path / "policy"))
    assert one.statistics == other.statistics
    assert torch.equal(
        load_file(tmp_path / "policy" / "model.safetensors")["policy.action_out.weight"],
        exported(finished)["policy.action_out.weight"],
    )


def test_the_card_tells_the_run(finished, tmp_path):
    told = ("--tag", "v1", "--success", "reach=9/10", "--conventions", "gripper 0 open, 1 closed", "--rate", 12.5)
    assert publish(finished, "--to", tmp_path / "policy", *TOLD, *told) == 0
    card = (tmp_path / "policy" / "README.md").read_text()
    for words in (
        "| 1 | 2 | 6 |", "| -1 | 4 | 32 |", "Teacher: `vggt`, under apache-2.0.", "4 steps of 4 samples",
        "| `lora.rank` | `4` |", "| action/flow_matching |", "| alignment (mean) |", "| control rate | 12.5 Hz |",
        "| reach | 90.0 % | 10 | 59.6 - 98.2 % |", "gripper 0 open, 1 closed", 'revision = "you/policy", "v1"',
    ):  # fmt: skip
        assert words in card, words
    assert str(finished.parent) not in card


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--repo", "you/name", "--to", "x"), "either --repo OWNER/NAME or --to FOLDER"),
        ((), "either --repo OWNER/NAME or --to FOLDER"),
        (("--to", "x"), "nothing says which model on the Hub was trained: pass --base"),
        (("--to", "x", "--base", "ada/base"), "nothing says under which license ada/base is: pass --license"),
        (("--to", "x", *TOLD, "--success", "reach=11/10"), "reach: 11 of 10 episodes cannot have succeeded"),
        (("--to", "x", *TOLD, "--success", "reach"), "--success takes SUITE=SUCCESSES/EPISODES"),
        (("--to", "x", "--base", "base", "--license", "mit"), "the card needs base_model"),
    ],
)
def test_what_is_not_said_is_asked_for(finished, tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert publish(finished, *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("rocket-hf publish: ") and sentence in error
    assert not list(tmp_path.iterdir())


def test_what_is_no_run_is_told(tmp_path, finished, capsys):
    assert publish(tmp_path, "--to", tmp_path / "x", *TOLD) == 2
    assert "neither a training run nor one of its checkpoints nor a policy's folder" in capsys.readouterr().err
    assert publish(finished / "policy", "--to", tmp_path / "x", *TOLD, "--adapter") == 2
    assert "an adapter is made from a run or one of its checkpoints" in capsys.readouterr().err
    shutil.copytree(finished / "checkpoints" / "step-00000004", tmp_path / "a" / "b" / "step")
    assert publish(tmp_path / "a" / "b" / "step", "--to", tmp_path / "x", *TOLD) == 2
    assert "is a checkpoint outside of its run" in capsys.readouterr().err


# On the Hub: the base, the policy and the adapter, by the commands in one process and by a stranger in another

COMMANDS = """
import sys
from rocket_hf.commands import main

base, run = sys.argv[1:]
told = ["--license", "apache-2.0"]
assert main(["publish", base, "--repo", "ada/base", "--tag", "v0", "--base", "ada/first", *told]) == 0
assert main(["verify", "ada/base", "--revision", "v0"]) == 0
assert main(["publish", run, "--repo", "ada/arm", "--tag", "v1", "--base", "ada/base@v0", *told]) == 0
for _ in range(2):
    assert main(["publish", run, "--adapter", "--repo", "ada/lora", "--tag", "v1", "--base", "ada/base@v0", *told]) == 0
assert main(["publish", run, "--adapter", "--repo", "ada/no", "--base", "ada/arm", *told]) == 2
assert main(["verify", "ada/lora"]) == main(["verify", "ada/none"]) == 2
"""

STRANGER = """
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
def test_an_adapter_on_the_published_base_is_the_trained_policy(tiny_run, tmp_path):
    """The card's own snippet, in a process without this package, gives the actions of the model as it trained."""
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
        assert "is not the one that was trained from: give its --base" in errors
        assert "ada/lora is an adapter" in errors and "the repository ada/none does not exist" in errors
        lora = {path: file.data for path, file in hub.model("ada/lora").head.files.items()}
        config = json.loads(lora["adapter_config.json"])
        assert config["auto_mapping"] is None and config["base_model_name_or_path"] == "ada/base"
        assert config["revision"] == hub.model("ada/base").tags["v0"]
        assert "policy.action_out" in config["modules_to_save"]
        assert str(tmp_path).encode() not in b"".join(lora.values())

        actions = tmp_path / "actions.safetensors"
        show = "\nsave_file({'actions': predict(policy.get_base_model(), processor).contiguous()}, sys.argv[1])"
        script = STRANGER + "\nfrom typing import Any\n" + inspect.getsource(policies.predict) + show
        code, _, errors = run_client(hub.url, script, actions, home=tmp_path / "stranger")
        assert code == 0, errors
    model, processor = load_adapted(find_origin(out))
    torch.testing.assert_close(load_file(actions)["actions"], predict(model, processor), atol=0, rtol=0)
