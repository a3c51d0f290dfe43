"""Tests that a ROCKET-2 policy is published, verified and loaded without this package, with goals and kept heads."""

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rocket_hf.commands import main
from rocket_hf.export.policy_folder import shipped_files, write_rocket2_files
from rocket_hf.foreign_code import ROCKET2_CLASSES
from rocket_hf.hub_cards.facts import Provenance
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.publishing import Rocket2Package, write_to_folder
from rocket_hf.publishing.check import check_policy
from rocket_hf.publishing.verify import verify_policy

from ..modeling.rocket2_tiny import random_rocket2
from .clients import WITHOUT_PACKAGE, run
from .policies import tiny_policy, write_published

PROVENANCE = Provenance("mit", None)
KEPT = ["visibility", "point"]


@pytest.fixture(scope="module")
def model() -> Rocket2ForActionPrediction:
    """Return a policy with all three heads of training. Its action columns are not in alphabetical order."""
    return random_rocket2(action_factors={"walk": 2, "turn": 9, "strafe": 3}, rest_action=[0, 4, 0])


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory) -> Path:
    """Return a policy folder as a training run exports it, with the heads that the recipe keeps."""
    folder = tmp_path_factory.mktemp("run") / "policy"
    policy = model.for_inference(KEPT)
    policy.save_pretrained(folder)
    write_rocket2_files(folder, policy.config)
    return folder


@pytest.fixture(scope="module")
def published(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "scout"
    return write_to_folder(Rocket2Package(model, PROVENANCE, KEPT), folder, tag="v1")


@pytest.fixture
def folder(published, tmp_path) -> Path:
    """Return a copy of the published folder, for a test to damage."""
    return shutil.copytree(published, tmp_path / "scout")


@pytest.fixture(scope="module")
def report(model, tmp_path_factory) -> Path:
    """Write a report of `rocket-hf eval --env vizdoom` on this policy with eight episodes."""
    from rocket_hf.evaluation.identity import rocket2_fingerprint
    from rocket_hf.evaluation.report import PolicyIdentity
    from rocket_hf.evaluation.rocket2.report import Rocket2EvaluationReport, Rocket2EvaluationResult

    from ..evaluation.test_rocket2_report import run as episodes

    folder = tmp_path_factory.mktemp("report")
    identity = PolicyIdentity("scout", None, rocket2_fingerprint(model))
    result = Rocket2EvaluationResult(identity, {1: episodes("tttttttw"), 30: episodes("ttttww--")})
    Rocket2EvaluationReport(result, None, episodes("t-wwwwww"), {"max_steps": 60}, {"torch": "2.11"}).write(folder)
    return folder


def play(model) -> dict[str, torch.Tensor]:
    """Return the actions, scores and head outputs of four steps, with a goal from the second step on.

    Weights are copied, because their memory layout changes the last bits.
    """
    from dataclasses import replace

    for weight in model.parameters():
        weight.data = weight.data.clone()
    pixels, draw = torch.Generator().manual_seed(1), torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (4, 2, 3, *model.config.image_size), generator=pixels, dtype=torch.uint8)
    masks = torch.rand(2, *model.config.image_size, generator=pixels) > 0.5
    goal = replace(model.no_goal(2), images=frames[3], masks=masks, interactions=torch.tensor([6, 0]))
    state, outputs = model.initial_state(2), []
    for step, frame in enumerate(frames):
        scores, _ = model.score_actions(frame, goal if step == 1 else None, state)
        action, state = model.step(frame, goal if step == 1 else None, state, generator=draw)
        outputs.append(
            [action.float(), *scores.values(), *(state.seen[name].view(2, -1) for name in sorted(state.seen))]
        )
    return {str(n): torch.stack(part).contiguous() for n, part in enumerate(zip(*outputs, strict=True))}


COMMANDS = """
import sys
from rocket_hf.commands import main

policy, report = sys.argv[1:]
publish = ["publish", policy, "--repo", "ada/scout", "--tag", "v1", "--license", "mit", "--evaluation", report]
assert main(publish) == main(publish) == 0
assert main(["verify", "ada/scout", "--revision", "v1"]) == 0
assert main(["verify", "ada/none"]) == 2
"""

USER_SCRIPT = (
    WITHOUT_PACKAGE
    + "import re\nfrom pathlib import Path\nimport torch\n"
    + inspect.getsource(play)
    + """
from huggingface_hub import hf_hub_download
from safetensors.torch import save_file

card = Path(hf_hub_download("ada/scout", "README.md", revision="v1")).read_text()
(snippet,) = re.findall(r"```python\\n(.*?)```", card, flags=re.DOTALL)
exec(snippet)
assert type(policy).__module__.startswith("transformers_modules.")
assert max(policy.self_test().distances.values()) < 1e-6
save_file(play(policy), sys.argv[1])
"""
)


@pytest.mark.needs_lerobot
def test_published_rocket2_policy_matches_trained_policy_in_clean_process(hub, model, exported, report, tmp_path):
    """The policy is published by the commands; a process without this package runs the code example of its card."""
    code, printed, errors = run(hub.url, COMMANDS, exported, report, home=tmp_path / "publisher")
    assert code == 0, errors
    commit = hub.model("ada/scout").tags["v1"]
    assert f"published  ada/scout at {commit}, tag v1" in printed and f"unchanged  ada/scout at {commit}" in printed
    assert f'"ada/scout", revision="{commit}", trust_remote_code=True)' in printed and "AutoProcessor" not in printed
    assert (
        f"verified   ada/scout at {commit}" in printed and "inverting the goal masks changes the scores by" in printed
    )

    out = tmp_path / "played.safetensors"
    code, printed, errors = run(hub.url, USER_SCRIPT, out, home=tmp_path / "user")
    assert code == 0, errors
    steps = printed.splitlines()
    assert len(steps) == 3 and all(step.startswith("{'walk': ") and "'visibility': " in step for step in steps)
    own, theirs = play(model.for_inference(KEPT)), load_file(out)
    assert len(own) == 6 and own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)


def test_published_folder_contains_policy_without_training_files(model, published):
    code = {path.name for path in shipped_files(ROCKET2_CLASSES)}
    files = {"config.json", "model.safetensors", "self_test.safetensors", "README.md"}
    assert {path.name for path in published.iterdir()} == code | files
    weights, trained = load_file(published / "model.safetensors"), model.state_dict()
    assert trained.keys() - weights.keys() == {"auxiliary.box.weight", "auxiliary.box.bias"}
    assert all(torch.equal(value, trained[name]) for name, value in weights.items())
    assert json.loads((published / "config.json").read_text())["auxiliary_heads"] == KEPT


def test_policy_is_published_in_chosen_dtype_and_self_test_reports_rounding_error(model, tmp_path):
    folder = write_to_folder(Rocket2Package(model, PROVENANCE, dtype=torch.bfloat16), tmp_path / "half")
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    report = verify_policy(str(folder)).report
    assert report.dtype == "bfloat16" and 0 < report.distances["scores"] < report.tolerance
    assert "not part of this repository" in (folder / "README.md").read_text()


def test_kept_heads_may_be_dropped_on_loading(published):
    report = Rocket2ForActionPrediction.from_pretrained(published, auxiliary_heads=["point"]).self_test()
    assert report.distances.keys() == {"scores", "point"} and report.others == 0


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("temporal.blocks.1.attention.value.weight", "the scores of actions differ by"),
        ("action_heads.factors.act_strafe.weight", "the scores of actions differ by"),
        ("previous_action.action.factors.act_turn.weight", "the scores of actions differ by"),
        ("auxiliary.point.weight", "the values of the head 'point' differ by"),
    ],
)
def test_damaged_weight_fails_self_test(folder, name, sentence):
    weights = load_file(folder / "model.safetensors")
    weights[name].neg_()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=f"self-test failed: {sentence} .* in float32 they may differ by 0.50%. .* torch"
    ):
        verify_policy(str(folder))


def test_verify_command_explains_failures_in_one_sentence(folder, capsys):
    weights = load_file(folder / "model.safetensors")
    weights["auxiliary.point.weight"].neg_()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert main(["verify", str(folder)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("rocket-hf verify: the policy ") and "self-test failed: the values of the head" in error
    (folder / "self_test.safetensors").write_text("damaged")
    assert main(["verify", str(folder)]) == 2
    assert "self_test.safetensors is not a readable safetensors file" in capsys.readouterr().err
    (folder / "rocket2_views.py").write_text("import (")
    assert main(["verify", str(folder)]) == 2
    assert "rocket2_views.py is not Python code" in capsys.readouterr().err


def test_policy_that_ignores_its_goals_is_rejected(model, tmp_path):
    ignorant = random_rocket2()
    with torch.no_grad():
        ignorant.views.goal_projection.weight.zero_()
    with pytest.raises(
        ValueError, match="marking other goals leaves the actions unchanged: the policy ignores its goals"
    ):
        write_to_folder(Rocket2Package(ignorant, PROVENANCE), tmp_path / "ignorant")
    assert not list(tmp_path.iterdir())


def with_weight(name: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors") | {name: torch.zeros(3)}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


PROBLEMS: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    (lambda folder: (folder / "self_test.safetensors").unlink(), "self_test.safetensors is missing"),
    (lambda folder: (folder / "rocket2_views.py").unlink(), "rocket2_views.py is missing"),
    (lambda folder: (folder / "processor_config.json").write_text("{}"), "processor_config.json is not allowed"),
    (lambda folder: (folder / "modeling_rocket.py").write_text(""), "modeling_rocket.py is not allowed"),
    (with_weight("auxiliary.box.bias"), "1 weights are missing, unexpected .* auxiliary.box.bias"),
    (with_weight("optimizer.step"), "optimizer.step, which belongs to training"),
]


@pytest.mark.parametrize(("damage", "message"), PROBLEMS, ids=[message for _, message in PROBLEMS])
def test_folder_with_a_problem_is_rejected(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message):
        check_policy(folder)


# The command


def publish(*arguments: object) -> int:
    return main(["publish", *map(str, arguments)])


@pytest.mark.needs_lerobot
def test_card_contains_known_facts(exported, report, tmp_path, capsys):
    facts = ("--license", "mit", "--base", "ada/encoder@" + "c" * 40, "--evaluation", report, "--success", "maze=9/10")
    more = ("--rate", 8.75, "--conventions", "turn 4 is straight on", "--keep", "none", "--tag", "v2")
    assert publish(exported, "--to", tmp_path / "scout", *facts, *more) == 0
    assert "heads      keeps the auxiliary heads: none" in capsys.readouterr().out
    card = (tmp_path / "scout" / "README.md").read_text()
    for words in (
        "| `walk` | 2 | 0 |\n| `turn` | 9 | 4 |\n| `strafe` | 3 | 0 |", "of 32 x 48 pixels", "turn 4 is straight on",
        "The policy takes 8.75 steps per second", "encoder) at `" + "c" * 40, "## Evaluation in vizdoom",
        "after at most 60 steps",
        "| at every step | this policy | 87.5 % (52.9 - 97.8 %) | 12.5 % (2.2 - 47.1 %) | 8 |",
        "| every 30 steps | this policy | 50.0 % (21.5 - 78.5 %) | 25.0 % (7.1 - 59.1 %) | 8 |",
        "|  | random | 12.5 % (2.2 - 47.1 %) | 75.0 % (40.9 - 92.9 %) | 8 |", "| maze | 90.0 % | 10 |",
        "value: 0.5", 'repo, revision = "you/scout", "v2"', "not part of this repository", "arxiv.org/abs/2503.02505",
    ):  # fmt: skip
        assert words in card, words
    assert "\n\n\n\n" not in card and "None |" not in card and "AutoProcessor" not in card
    figures = {path.name for path in (tmp_path / "scout" / "figures").iterdir()}
    assert figures == {"rocket2_success_rates_1.png", "success_rates.png"}


@pytest.mark.needs_lerobot
def test_converted_policy_keeps_only_requested_heads(exported, tmp_path):
    converted = shutil.copytree(exported, tmp_path / "converted")
    (converted / "conversion.json").write_text(json.dumps({"source": "ada/public", "revision": "d" * 40}))
    assert publish(converted, "--to", tmp_path / "none", "--license", "mit") == 0
    assert publish(converted, "--to", tmp_path / "point", "--license", "mit", "--keep", "point") == 0
    for name, heads in (("none", []), ("point", ["point"])):
        assert json.loads((tmp_path / name / "config.json").read_text())["auxiliary_heads"] == heads
        assert f"(https://huggingface.co/ada/public) at `{'d' * 40}`" in (tmp_path / name / "README.md").read_text()


@pytest.mark.needs_lerobot
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--adapter",), "--adapter does not apply to ROCKET-2, which is trained without LoRA: remove it"),
        (("--shard", "5"), "invalid shard size '5': write a positive number with KB, MB, GB or TB"),
        (("--shard", "0GB"), "invalid shard size '0GB': write a positive number"),
        (("--rate", "nan"), "--rate must be a positive number of steps per second, got nan"),
        (("--rate", "0"), "--rate must be a positive number of steps per second, got 0"),
        (("--rate", "-5"), "--rate must be a positive number of steps per second, got -5"),
        (("--tag", "v 1"), "invalid tag 'v 1': use letters, digits"),
        (("--tag", "v1..2"), "invalid tag 'v1..2'"),
        (("--tag", "v1.lock"), "invalid tag 'v1.lock'"),
        (("--tag", "a~1"), "invalid tag 'a~1'"),
        (("--base", "base"), "invalid base model 'base': expected OWNER/NAME"),
        (("--keep", "box"), "this policy has no auxiliary head 'box' to keep"),
        (("--evaluation", "metaworld.json"), "is not a report of `rocket-hf eval --env vizdoom`"),
        (("--evaluation", "none.json"), "none.json"),
        ((), "the license of this policy is unknown: pass --license"),
    ],
)
def test_wrong_arguments_end_with_one_sentence(exported, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    overall = {"suite": "metaworld", "overall": {"successes": 1, "episodes": 2}, "policy": {"fingerprint": "x"}}
    Path("metaworld.json").write_text(json.dumps(overall))
    license = ("--license", "mit") if arguments else ()
    assert publish(exported, "--to", "out", *license, *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("rocket-hf publish: ") and message in error
    assert not Path("out").exists()


@pytest.mark.needs_lerobot
def test_wrong_policy_folders_are_named_in_errors(exported, report, tmp_path, capsys):
    options = ("--to", tmp_path / "out", "--license", "mit")
    other = tmp_path / "llama"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "llama"}')
    assert publish(other, *options) == main(["verify", str(other)]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    sentence = "has the model type 'llama': give the folder of a VLA or ROCKET-2 policy"
    assert all(sentence in error for error in errors[-2:])
    bare = shutil.copytree(exported, tmp_path / "bare", ignore=lambda *_: ["model.safetensors"])
    assert publish(bare, *options) == 2
    assert "model.safetensors" in capsys.readouterr().err.strip().splitlines()[-1]
    Rocket2ForActionPrediction(random_rocket2().config).save_pretrained(tmp_path / "other")
    assert publish(tmp_path / "other", *options, "--evaluation", report) == 2
    assert "is of another policy than the one to publish" in capsys.readouterr().err
    vla = write_published(tmp_path / "vla", tiny_policy())
    assert publish(vla, *options, "--base", "ada/base", "--keep", "point") == 2
    assert "--keep applies to ROCKET-2's auxiliary heads only, but this is a VLA policy" in capsys.readouterr().err
