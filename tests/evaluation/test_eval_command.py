"""The command `rocket-hf eval` in MetaWorld."""

import json
import shutil
import sys

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from rocket_hf.commands import main
from rocket_hf.evaluation.report import REPORT
from rocket_hf.evaluation.rollout_strips import MAX_BYTES

from .policies import export_pushing_policy

SHORT = ["--tasks", "button-press-v3", "--episodes", "2", "--max-steps", "45"]


@pytest.fixture(scope="module")
def pushing(tmp_path_factory):
    return export_pushing_policy(tmp_path_factory.mktemp("policies") / "pushing", spread=0.4)


@pytest.fixture(scope="module")
def weak(tmp_path_factory):
    return export_pushing_policy(tmp_path_factory.mktemp("policies") / "weak", spread=1e-9, push=0.1)


def run(capsys, *arguments):
    code = main(["eval", *map(str, arguments)])
    return code, capsys.readouterr()


def test_two_policies_are_compared_on_the_same_starts_for_any_number_of_workers(pushing, weak, tmp_path, capsys):
    code, printed = run(capsys, pushing, *SHORT, "--against", weak, "--out", tmp_path, "--workers", 0)
    assert code == 0, printed.err
    values = json.loads((tmp_path / REPORT).read_text())
    outcomes = [(episode["seed"], episode["success"]) for episode in values["episodes"]]
    assert outcomes == [(100_000, True), (100_001, False)]
    assert values["against"]["overall"]["successes"] == 0
    assert values["comparison"]["only_first"] == 1
    assert "1 of 2: 50.0 % (9.5 to 90.5)" in printed.out
    assert "contains zero, so these episodes do not show which policy is better" in printed.out
    assert values["policy"]["fingerprint"] != values["against"]["policy"]["fingerprint"]
    for name in ("success.png", "failure.png"):
        with Image.open(tmp_path / "rollouts" / name) as image:
            assert image.height == 128 and image.width > 4 * 128
        assert (tmp_path / "rollouts" / name).stat().st_size <= MAX_BYTES

    code, printed = run(capsys, pushing, *SHORT, "--out", tmp_path / "again", "--workers", 2)
    again = json.loads((tmp_path / "again" / REPORT).read_text())
    assert code == 0 and again["episodes"] == values["episodes"], "also in worker processes"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "drawer-opn-v3"], "did you mean 'drawer-open-v3'?"),
        (["--tasks", "reach-v3", "--env", "metaworl"], "did you mean 'metaworld'?"),
        (
            ["--tasks", "reach-v3", "--execute", "9"],
            "--execute must be 1 to 4, the length of this policy's chunks, not 9",
        ),
        (["--tasks", "reach-v3", "--episodes", "0"], "--episodes must be at least 1"),
        (["--tasks", "reach-v3", "--cameras", "corner2"], "--cameras takes POLICY=ENV"),
        (["--tasks", "reach-v3", "--protocol", "openvl"], "did you mean 'openvla'?"),
        (["--tasks", "reach-v3", "--device", "gpu"], "--device 'gpu' is not available"),
        (["--tasks", "reach-v3", "--out", "/dev/null/report"], "cannot create the folder /dev/null/report"),
        (["--tasks", "reach-v3", "--out", "/proc/self/fdinfo"], "the folder /proc/self/fdinfo cannot be written"),
        (["--env", "libero", "--tasks", "libero_spatial/0"], "LIBERO is not installed: run `pip install"),
    ],
)
def test_wrong_input_prints_one_sentence(arguments, message, pushing, capsys):
    code, printed = run(capsys, pushing, *arguments)
    assert code == 2 and message in printed.err
    assert printed.err.startswith("rocket-hf eval: ") and len(printed.err.splitlines()) == 1


def test_policy_with_damaged_weights_moves_no_robot(pushing, tmp_path, capsys):
    folder = shutil.copytree(pushing, tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    weights["policy.action_head.fc_out.bias"][1] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    code, printed = run(capsys, folder, *SHORT, "--workers", 0, "--out", tmp_path / "report")
    assert code == 2 and "the predicted actions are not finite, so none are returned" in printed.err.splitlines()[-1]
    assert not (tmp_path / "report" / REPORT).exists()


def test_policy_for_another_robot_is_rejected(tmp_path, capsys):
    folder = export_pushing_policy(tmp_path / "other", cameras=["corner2", "wrist"])
    code, printed = run(capsys, folder, *SHORT, "--workers", 0)
    assert code == 2 and "--cameras wrist=corner2" in printed.err.splitlines()[-1]
    assert "the policy has cameras corner2, wrist, state 4 and action 4; the environment has" in printed.err


def test_missing_renderer_prints_one_sentence(pushing, monkeypatch, capsys):
    from rocket_hf.sims import headless

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(headless, "load_library", lambda name: None)
    monkeypatch.setattr(sys, "platform", "linux")
    code, printed = run(capsys, pushing, *SHORT, "--workers", 0)
    assert code == 2 and "apt-get install" in printed.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", None),
        ("model.safetensors", "{"),
        ("config.json", "{"),
        ("processor_config.json", "{"),
        ("tokenizer.json", None),
        ("tokenizer.json", "{"),
    ],
)
def test_damaged_policy_prints_one_sentence(file, content, pushing, tmp_path, capsys):
    folder = shutil.copytree(pushing, tmp_path / "damaged")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    code, printed = run(capsys, folder, *SHORT, "--workers", 0)
    last = printed.err.splitlines()[-1]
    assert code == 2 and last.startswith("rocket-hf eval: ") and str(folder) in last and " again" in last


def test_report_of_another_policy_is_not_published(pushing, weak, tmp_path, capsys):
    assert run(capsys, weak, *SHORT, "--workers", 0, "--out", tmp_path / "report")[0] == 0
    common = ["--base", "you/base", "--license", "apache-2.0", "--evaluation", tmp_path / "report"]
    code = main(["publish", str(pushing), "--to", str(tmp_path / "wrong"), *map(str, common)])
    assert code == 2 and "is of another policy" in capsys.readouterr().err
    assert main(["publish", str(weak), "--to", str(tmp_path / "right"), *map(str, common)]) == 0
    assert "| metaworld | 0.0 % | 2 |" in (tmp_path / "right" / "README.md").read_text()
