"""`rocket-hf eval --perturb`, and `--env` with settings: success by perturbation from the same starts.

python -m pytest tests/evaluation/test_perturbations.py
"""

import json
import subprocess
import sys
import time

import pytest
from PIL import Image

from rocket_hf.commands import main
from rocket_hf.evaluation import rollouts
from rocket_hf.evaluation.episode_journal import JOURNAL
from rocket_hf.evaluation.perturbation_report import PLOT, REPORT, TEXT
from rocket_hf.evaluation.report import REPORT as EVALUATION
from rocket_hf.evaluation.statistics import wilson_interval
from rocket_hf.sims.settings import parse_environment_name, parse_perturbation

from .policies import export_pushing_policy

SHORT = ["--tasks", "button-press-v3", "--episodes", "2", "--max-steps", "45", "--workers", "0", "--image-size", "32"]


@pytest.fixture(scope="module")
def pushing(tmp_path_factory):
    return export_pushing_policy(tmp_path_factory.mktemp("policies") / "pushing", spread=0.4)


@pytest.fixture(scope="module")
def perturbed(pushing, tmp_path_factory):
    folder = tmp_path_factory.mktemp("perturbed") / "report"
    assert main(["eval", str(pushing), *SHORT, "--perturb", "camera=0,20", "--out", str(folder)]) == 0
    return folder


def run(capsys, *arguments):
    code = main(["eval", *map(str, arguments)])
    return code, capsys.readouterr()


def test_each_value_of_a_perturbation_is_the_evaluation_of_its_environment(perturbed, pushing, tmp_path, capsys):
    report = json.loads((perturbed / REPORT).read_text())
    assert (report["environment"], report["perturbation"], report["unit"]) == (
        "metaworld", "camera", "camera azimuth (degrees)"
    )  # fmt: skip
    names = {0: "metaworld", 20: "metaworld:camera=fixed(20,0,0)"}
    assert [(entry["value"], entry["environment"]) for entry in report["values"]] == list(names.items())
    for entry in report["values"]:
        out = tmp_path / str(entry["value"])
        assert run(capsys, pushing, *SHORT, "--env", entry["environment"], "--out", out)[0] == 0
        alone = json.loads((out / EVALUATION).read_text())
        assert alone["suite"] == entry["environment"]
        assert {name: alone[name] for name in ("tasks", "overall", "episodes")} == {
            name: entry[name] for name in ("tasks", "overall", "episodes")
        }
        assert [episode["seed"] for episode in entry["episodes"]] == [100_000, 100_001]
        overall = entry["overall"]
        assert overall["interval"] == list(wilson_interval(overall["successes"], overall["episodes"]))


def test_report_of_perturbations_has_a_table_and_a_figure(perturbed):
    text = (perturbed / TEXT).read_text()
    assert "| camera azimuth (degrees) | all | button-press-v3 |" in text
    assert [line[:6] for line in text.splitlines() if line.startswith(("| 0 ", "| 20"))] == ["| 0 | ", "| 20 |"]
    assert "- image size: 32" in text and "Wilson's, at 95 %" in text
    with Image.open(perturbed / PLOT) as image:
        assert image.width > 400 and len(set(image.convert("L").resize((64, 64)).tobytes())) > 10
    assert not (perturbed / JOURNAL).exists()


def test_killed_evaluation_of_perturbations_resumes(perturbed, pushing, tmp_path, monkeypatch, capsys):
    arguments = ["eval", str(pushing), *SHORT, "--perturb", "camera=0,20", "--out", str(tmp_path)]
    process = subprocess.Popen([sys.executable, "-m", "rocket_hf.commands", *arguments], stderr=subprocess.DEVNULL)
    journal = tmp_path / JOURNAL
    while process.poll() is None and not (journal.exists() and journal.read_text().endswith("\n")):
        time.sleep(0.01)  # until the first episode is stored
    process.kill()
    process.wait()
    finished = len(journal.read_text().split("\n\n"))
    assert finished > 0 and not (tmp_path / REPORT).exists()

    run_episodes, remaining = rollouts.run_episodes, []

    def run_and_count(runner, pool, starts, *rest):
        remaining.append(len(starts))
        return run_episodes(runner, pool, starts, *rest)

    monkeypatch.setattr(rollouts, "run_episodes", run_and_count)
    assert main(arguments) == 0
    assert sum(remaining) == 4 - finished
    again, whole = (json.loads((folder / REPORT).read_text()) for folder in (tmp_path, perturbed))
    assert again["values"] == whole["values"] and not journal.exists()


def test_policy_reads_images_of_geometry_as_cameras(tmp_path, capsys):
    """A policy is evaluated where its maps exist, and refused where they do not."""
    policy = export_pushing_policy(tmp_path / "mapped", spread=0.4, cameras=["corner2", "corner2_xyz"])
    code, printed = run(capsys, policy, *SHORT, "--env", "metaworld:inputs=xyz,cameras=corner2")
    assert code == 0 and "in metaworld:cameras=corner2,inputs=xyz" in printed.out
    code, printed = run(capsys, policy, *SHORT, "--env", "metaworld")
    assert code == 2 and "the policy has cameras corner2, corner2_xyz, state 4" in printed.err.splitlines()[-1]


def test_heights_are_perturbed_beside_other_settings():
    settings = parse_environment_name("metaworld:cameras=corner2")
    environments = parse_perturbation("heights=0,0.06,0.12", settings).environments(settings)
    assert [environment.name for environment in environments] == [
        "metaworld:cameras=corner2", "metaworld:heights=0.06,cameras=corner2", "metaworld:heights=0.12,cameras=corner2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--perturb", "camra=0,5"], "metaworld has no perturbation 'camra': did you mean 'camera'?"),
        (["--perturb", "camera"], "the perturbation 'camera' has no values: write it as camera=0,5,10,20"),
        (["--perturb", "camera=0,x"], "camera takes numbers from -180 to 180, got 'x'"),
        (["--perturb", "heights=0,0.5"], "heights takes numbers from 0 to 0.3, got '0.5'"),
        (["--perturb", "camera=5,5.0"], "the perturbation 'camera=5,5.0' contains a value twice"),
        (["--perturb", "camera=5", "--env", "metaworld:camera=fixed(5,0,0)"], "sets camera already: remove it from"),
        (["--perturb", "camera=5", "--env", "metaworld:cameras=gripperPOV"], "moves corner2: add it to cameras"),
        (
            ["--perturb", "camera=5", "--env", "libero"],
            "libero has no setting 'camera': only metaworld can be perturbed",
        ),
        (["--perturb", "camera=5", "--against", "other"], "--against is not an option for --perturb: remove it"),
        (["--perturb", "heights=0,0.1", "--tasks", "push-v3"], "heights cannot raise the objects of push-v3"),
        (["--env", "metaworld:heights=0.1..0"], "the range heights=0.1..0 is reversed: write heights=0..0.1"),
        (["--env", "metaworld:heihgts=0..0.1"], "metaworld has no setting 'heihgts': did you mean 'heights'?"),
        (["--env", "libero:heights=0..0.1"], "libero has no setting 'heights': only metaworld has settings"),
    ],
)
def test_wrong_perturbation_prints_one_sentence(arguments, message, pushing, capsys):
    code, printed = run(capsys, pushing, *SHORT, *arguments)
    assert code == 2 and message in printed.err
    assert printed.err.startswith("rocket-hf eval: ") and len(printed.err.splitlines()) == 1


def test_perturbation_is_rejected_without_simulated_tasks(pushing, capsys):
    code, printed = run(capsys, pushing, "--env", "vizdoom", "--perturb", "camera=0,5")
    assert code == 2 and "--perturb is not an option for vizdoom: remove it" in printed.err
    code, printed = run(capsys, pushing, "--dataset", "data", "--perturb", "camera=0,5")
    assert code == 2 and "--perturb is not an option for --dataset: remove it" in printed.err
