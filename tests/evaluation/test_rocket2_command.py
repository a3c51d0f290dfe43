"""The command `rocket-hf eval --env vizdoom`."""

import json
import shutil
import sys

import pytest

from rocket_hf.commands import main
from rocket_hf.evaluation.identity import rocket2_fingerprint
from rocket_hf.evaluation.report import REPORT, TEXT
from rocket_hf.evaluation.rollout_strips import MAX_BYTES
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction

from .rocket2_players import random_policy

SHORT = ["--env", "vizdoom", "--episodes", "4", "--max-steps", "6", "--refresh", "2,6", "--workers", "0"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies") / "saved"
    random_policy().save_pretrained(folder)
    return folder


def run(capsys, *arguments):
    code = main(["eval", *map(str, arguments)])
    return code, capsys.readouterr()


def test_results_are_reproducible_for_any_parallelism(saved, tmp_path, capsys):
    code, printed = run(capsys, saved, *SHORT, "--out", tmp_path / "one", "--videos", tmp_path / "videos")
    assert code == 0, printed.err
    assert printed.out.startswith("# policies") and printed.out.strip().endswith("one")
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert files == {REPORT, TEXT, "strip-every-2.png", "strip-every-6.png", "rollouts"}
    strips = list((tmp_path / "one" / "rollouts").iterdir())
    assert strips and {path.name for path in strips} <= {"success.png", "failure.png"}
    assert all(path.stat().st_size <= MAX_BYTES for path in strips)
    for refresh in (2, 6):
        assert len(list((tmp_path / "videos" / f"every-{refresh}").glob("room-500000?-*.mp4"))) == 4
    code, _ = run(capsys, saved, *SHORT, "--out", tmp_path / "two", "--parallel", 2)
    first, second = (json.loads((tmp_path / name / REPORT).read_text()) for name in ("one", "two"))
    assert first["policy"]["fingerprint"] == rocket2_fingerprint(Rocket2ForActionPrediction.from_pretrained(saved))
    assert first["settings"].pop("parallel") == 8 and second["settings"].pop("parallel") == 2
    for values in (first, second):
        del values["speed"]
        for refresh in values["refreshes"].values():
            del refresh["sight"]  # predictions are equal only up to rounding
    assert first == second
    assert "vizdoom" in first["versions"] and first["settings"]["seed"] == 5_000_000


def test_run_folder_is_evaluated_and_compared_with_another_policy(saved, tmp_path, capsys):
    """A policy without its auxiliary heads has the same fingerprint and actions."""
    run_folder = tmp_path / "run"
    Rocket2ForActionPrediction.from_pretrained(saved).for_inference().save_pretrained(run_folder / "policy")
    (run_folder / "recipe.yaml").write_text("")
    code, printed = run(capsys, run_folder, *SHORT, "--against", saved, "--out", tmp_path / "report")
    assert code == 0, printed.err
    values = json.loads((tmp_path / "report" / REPORT).read_text())
    assert values["policy"]["fingerprint"] == values["against"]["policy"]["fingerprint"]
    assert values["refreshes"]["6"]["episodes"] == values["against"]["refreshes"]["6"]["episodes"]
    assert values["comparison"]["6"]["target"]["difference"] == 0
    assert "| no such head | no such head | no such head |" in printed.out
    assert (tmp_path / "report" / "strip-every-second-6.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "vizdoom", "--tasks", "easy"], "--tasks is not an option for vizdoom"),
        (["--env", "vizdoom", "--execute", "2"], "--execute is not an option for vizdoom"),
        (["--env", "vizdoom", "--cameras", "a=b"], "--cameras is not an option for vizdoom"),
        (["--env", "vizdoom", "--image-size", "64"], "--image-size is not an option for vizdoom"),
        (["--env", "vizdoom", "--protocol", "plain"], "--protocol is not an option for vizdoom"),
        (["--env", "metaworld", "--tasks", "easy", "--refresh", "1"], "--refresh is not an option for metaworld"),
        (["--env", "libero", "--tasks", "all", "--temperature", "0"], "--temperature is not an option for libero"),
        (["--env", "metaworld"], "metaworld needs --tasks"),
        (["--env", "vizdom"], "did you mean 'vizdoom'?"),
        (["--env", "minecraft"], "MineStudio"),
        (["--env", "vizdoom", "--refresh", "1,0"], "each at least 1, got [1, 0]"),
        (["--env", "vizdoom", "--refresh", "3,3"], "different numbers of steps"),
        (["--env", "vizdoom", "--temperature", "-1"], "or positive, got -1.0"),
        (["--env", "vizdoom", "--episodes", "0"], "--episodes must be at least 1"),
        (
            ["--env", "vizdoom", "--seed", "9999990", "--episodes", "20"],
            "at most seven digits and not be negative, got 10000009",
        ),
    ],
)
def test_wrong_input_prints_one_sentence(arguments, message, saved, capsys):
    code, printed = run(capsys, saved, *arguments)
    assert code == 2 and message in printed.err
    assert printed.err.startswith("rocket-hf eval: ") and len(printed.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": [40, 80]}, "images of 40 x 80 and the actions walk (3)"),
        ({"action_factors": {"turn": 9, "walk": 3, "strafe": 3}}, "actions turn (9), walk (3), strafe (3)"),
        ({"rest_action": [1, 0, 0]}, "[1, 0, 0] for rest; vizdoom has images of 60 x 80"),
        ({"interactions": 4}, "has 4 interactions, but 'approach' is number 6"),
    ],
)
def test_policy_for_another_environment_is_rejected(changes, message, tmp_path, capsys):
    random_policy(**changes).save_pretrained(tmp_path)
    code, printed = run(capsys, tmp_path, *SHORT)
    assert code == 2 and message in printed.err.splitlines()[-1]


def test_policy_of_another_type_is_rejected(saved, tmp_path, capsys):
    other = shutil.copytree(saved, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "rocket"}))
    code, printed = run(capsys, other, *SHORT)
    assert code == 2 and "is not a ROCKET-2 policy but of type 'rocket'" in printed.err.splitlines()[-1]
    code, printed = run(capsys, tmp_path, *SHORT)
    assert code == 2 and "is neither a training run (no recipe.yaml) nor a checkpoint" in printed.err


def test_missing_engine_prints_one_sentence(saved, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    code, printed = run(capsys, saved, *SHORT)
    assert code == 2 and "pip install 'rocket-hf[sim]'" in printed.err.splitlines()[-1]
