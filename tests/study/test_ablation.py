"""Ablations: training, evaluation, statistics, reports, and resuming after a kill.

python -m pytest tests/study/test_ablation.py -m "slow or not slow"
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from rocket_hf.commands import main
from rocket_hf.sims.demonstrations import record
from rocket_hf.study.ablation import Ablation, alignment_settings, phase_name, read_data
from rocket_hf.study.ablation_depth import ProbedVariant, error_difference
from rocket_hf.study.ablation_report import write_ablation_report
from rocket_hf.study.ablation_training import MEMORY
from rocket_hf.study.phases import Phases, write_experiment_recipe
from rocket_hf.training.journal import read_journal
from rocket_hf.training.recipe_files import read_vla_recipe

SIZES = {"steps": 4, "rollouts": 2, "episodes": None, "depth_episodes": 4}
PAIRS = {"student": [2, 3, 4], "teacher": [1, 3, 4]}


def demo_folder(folder: Path) -> Path:
    """Write what an ablation reads of a demo, without images and features."""
    (folder / "dataset" / "meta").mkdir(parents=True)
    plan = {"plan": {"tasks": ["reach-v3"]}}
    (folder / "dataset" / "meta" / "simulation.json").write_text(json.dumps(plan))
    return mark_as_demo(folder)


def mark_as_demo(folder: Path) -> Path:
    (folder / "progress.json").write_text(json.dumps({"settings": {}, "results": {}, "seconds": {}}))
    phases = Phases(folder, {})
    for name, result in {"simulate": {}, "pairs": PAIRS, "cache": {}}.items():
        phases(name, partial(dict, result))
    return folder


def ablation_in(folder: Path, recipes: list[str], seeds: int = 2) -> Ablation:
    data = folder / "demo"
    return Ablation(folder / "out", recipes, seeds, SIZES, data if data.exists() else demo_folder(data), {}, workers=1)


@pytest.fixture
def written(tmp_path):
    """Ablation with two seeds and two variants, with known losses and outcomes, and its report."""
    ablation = ablation_in(tmp_path, ["none", "shared"])
    outcomes = {"none": "10 00", "shared": "11 10"}  # outcomes of two episodes for each seed
    for name, by_seed in outcomes.items():
        for seed, digits in enumerate(by_seed.split()):
            write_run(ablation.run_folder(name, seed), level=1.0 + seed, aligned=name == "shared")
            episodes = [
                {"task": "reach-v3", "seed": 100_000 + number, "success": digit == "1"}
                for number, digit in enumerate(digits)
            ]
            result = {"episodes": episodes, "cpu_seconds": 1800.0}
            ablation.phases(phase_name("rollouts", name, seed), partial(dict, result))
    write_ablation_report(ablation)
    return ablation


def write_run(run: Path, level: float, aligned: bool) -> None:
    pairs = {"alignment/2-1": 0.5, "alignment/4-4": 0.7, "agreement/pairs": 0.25, "agreement/action": -0.5}
    alignment = pairs | {"agreement/conflicting": 0.0, "seconds/agreement": 9.0} if aligned else {}
    lines = [
        {"step": step, "loss": 9.0, "action/flow_matching": level / step, "seconds/student": 0.1 * step,
         "seconds/data": 0.01, **alignment}
        for step in (1, 2, 3, 4)
    ]  # fmt: skip
    run.mkdir(parents=True)
    (run / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / MEMORY).write_text(str(512 * 2**20))


def test_results_of_a_variant_cover_all_seeds(written):
    results = json.loads((written.folder / "report.json").read_text())["variants"]["shared"]
    assert (results["successes"], results["rollouts"], results["by_seed"]) == (3, 4, {"0": [2, 2], "1": [1, 2]})
    interval = binomtest(3, 4).proportion_ci(method="wilson")
    assert results["interval"] == pytest.approx([interval.low, interval.high])
    assert results["action_loss"] == {"mean": 0.375, "by_seed": [0.25, 0.5]}  # at the last of four steps
    assert results["alignment_loss"]["mean"] == pytest.approx(0.6)
    assert (results["agreement_between_pairs"]["mean"], results["agreement_with_action"]["mean"]) == (0.25, -0.5)
    assert results["seconds_per_step"] == pytest.approx(0.26)  # the median of 0.11, ..., 0.41, agreement left out
    assert results["peak_memory_bytes"] == 512 * 2**20


def test_variants_are_compared_on_the_same_episodes_of_the_same_seed(written):
    against = json.loads((written.folder / "report.json").read_text())["variants"]["shared"]["against"]["none"]
    assert [against[name] for name in ("both", "only_first", "only_second", "neither")] == [1, 2, 0, 1]
    assert against["difference"] == 0.5
    assert against["p_value"] == binomtest(2, 2, 0.5).pvalue


def test_report_and_table_agree(written):
    text = (written.folder / "report.md").read_text()
    assert "| shared | 3 of 4: 75.0 % (30.1 to 95.4) | 100, 50 | +50.0 (" in text
    assert "| none | 0.375 | - | - | - | - | 260 | 512 |" in text
    assert "| shared | 0.375 | 0.600 | 0.250 | 0 % | -0.500 | 260 | 512 |" in text
    assert "2.00 CPU hours" in text
    assert "incomplete" in text
    rows = {row["variant"]: row for row in csv.DictReader((written.folder / "table.csv").open())}
    assert (rows["shared"]["difference_to_none"], rows["none"]["alignment_loss"]) == ("0.5", "")
    assert float(rows["shared"]["alignment_loss"]) == pytest.approx(0.6)


def test_numbers_of_every_plot_are_written(written):
    for name in ("success", "losses", "agreement"):
        assert (written.folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    losses = list(csv.DictReader((written.folder / "losses.csv").open()))
    assert len(losses) == 2 * 2 * 4
    assert losses[-1] == {"variant": "shared", "seed": "1", "step": "4", "action": "0.5", "alignment": "0.6"}
    success = list(csv.DictReader((written.folder / "success.csv").open()))
    assert [(row["seed"], row["rate"]) for row in success if row["variant"] == "shared"] == [
        ("0", "1.0"), ("1", "0.5"), ("all", "0.75"),
    ]  # fmt: skip


def test_remaining_time_is_estimated_from_completed_phases(tmp_path):
    ablation = ablation_in(tmp_path, ["none", "rocket"], seeds=1)
    assert ablation.format_progress() == "0 min elapsed, more than 0 min remaining"
    for phase in ablation.all_phases():
        if phase.name not in ("train rocket seed 0", "rollouts rocket seed 0"):
            ablation.phases(phase.name, dict)
    ablation.phases.seconds |= {"train none seed 0": 600, "rollouts none seed 0": 3600}
    assert ablation.format_progress() == "1 h 10 min elapsed, 1 h 10 min remaining"


def test_seeds_and_recipes_may_be_added_but_steps_may_not_change(tmp_path):
    first = ablation_in(tmp_path, ["none"], seeds=1)
    for phase in first.all_phases():
        first.phases(phase.name, dict)
    added = ablation_in(tmp_path, ["none", "rocket"], seeds=2)
    remaining = {phase.name for phase in added.remaining_phases()}
    assert "train none seed 0" not in remaining
    assert {"train none seed 1", "train rocket seed 0", "depth none,rocket seed 0"} <= remaining
    with pytest.raises(ValueError, match=r"started with steps 4, not 5"):
        Ablation(tmp_path / "out", ["none"], 1, SIZES | {"steps": 5}, tmp_path / "demo", {}, 1)


def test_recipe_with_one_pair_uses_the_deepest_and_others_use_all(tmp_path):
    data = read_data(demo_folder(tmp_path / "demo"))
    layers = ("alignment.student_layers", "alignment.teacher_layers")
    chosen = {
        name: tuple(alignment_settings(name, data, steps=400)[key] for key in layers)
        for name in ("spatial-forcing", "naive", "shared", "rocket")
    }
    assert chosen.pop("spatial-forcing") == ([4], [4])
    assert set(map(str, chosen.values())) == {str(tuple(PAIRS.values()))}
    assert alignment_settings("none", data, steps=400) == {}


@pytest.mark.parametrize(("pairs", "expected"), [(1, ([4], [4])), (8, tuple(PAIRS.values()))])
def test_recipe_with_a_number_of_pairs_is_trained_with_the_pairs_of_the_demo(tmp_path, pairs, expected):
    """The recipe has no lists of layers."""
    data, file = read_data(demo_folder(tmp_path / "demo")), tmp_path / "mine.yaml"
    file.write_text(f"like: none\nalignment: {{pairs: {pairs}, strategy: uniform}}\n")
    settings = alignment_settings(str(file), data, steps=400)
    written = read_vla_recipe(str(write_experiment_recipe(tmp_path / "written.yaml", str(file), settings)))
    assert written.alignment is not None and written.alignment.pairs is None
    assert (written.alignment.student_layers, written.alignment.teacher_layers) == expected


def test_depth_errors_are_compared_on_the_same_episodes_at_the_selected_layers():
    def probed(seed, best, *episodes):
        return ProbedVariant("variant", "run", seed, [0, 1], np.array(episodes), best)

    first = [probed(0, 1, [0.9, 0.1], [0.9, 0.2]), probed(1, 0, [0.3, 0.9], [0.2, 0.9])]
    second = [probed(0, 0, [0.2, 0.9], [0.3, 0.9]), probed(1, 0, [0.4, 0.9], [0.3, 0.9])]
    difference = error_difference(first, second)
    assert [difference[name] for name in ("mean", "low", "high")] == pytest.approx([-0.1] * 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipes", "none,nine"], "there is no recipe 'nine'"),
        (["--recipes", "none,none"], "lists a recipe twice"),
        (["--recipes", ","], "contains no recipe"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--data", "nowhere"], "nowhere contains no demo data: pass a folder"),
        (["--data", "nowhere", "--episodes", "3"], "pass only one of them"),
    ],
)
def test_invalid_arguments_are_reported_in_one_sentence(words, message, tmp_path, capsys):
    assert main(["ablate", *words, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


# Complete ablations, which take minutes


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Data of a demo with one short task."""
    folder = tmp_path_factory.mktemp("demo")
    record(folder / "dataset", "metaworld", ("handle-press-v3",), 2, image_size=42, depth=False, workers=1)
    cache = ["cache", "build", str(folder / "dataset"), "--teacher", "embedded", "--layers", "1,3,4"]
    assert main([*cache, "--out", str(folder / "features")]) == 0
    return mark_as_demo(folder)


def ablate_arguments(demo: Path, out: Path, recipes: str) -> list[str]:
    sizes = ["--seeds", "1", "--steps", "3", "--rollouts", "1", "--depth-episodes", "4", "--workers", "1"]
    return ["ablate", "--data", str(demo), "--recipes", recipes, *sizes, "--out", str(out)]


@pytest.mark.slow
def test_variants_share_initial_weights_and_samples_and_are_evaluated(demo, tmp_path, capsys):
    assert main(ablate_arguments(demo, tmp_path / "out", "none,rocket")) == 0
    assert "[7 of 7] depth none,rocket seed 0: " in capsys.readouterr().out
    none, rocket = (read_journal(tmp_path / "out" / "runs" / f"{name}-seed-0" / "journal.jsonl") for name in
                    ("none", "rocket"))  # fmt: skip
    assert none[0]["action/flow_matching"] == rocket[0]["action/flow_matching"]  # equal weights, samples and noise
    results = json.loads((tmp_path / "out" / "report.json").read_text())
    for name, values in results["variants"].items():
        evaluated = json.loads((tmp_path / "out" / "rollouts" / f"{name}-seed-0" / "evaluation.json").read_text())
        assert [values["successes"], values["rollouts"]] == [evaluated["overall"]["successes"], 1]
        assert values["peak_memory_bytes"] > 2e8
    assert results["about"]["remaining_phases"] == []
    assert results["depth"].keys() >= {"none", "rocket", "untrained", "teacher embedded"}
    assert (tmp_path / "out" / "depth.png").is_file()

    assert main(ablate_arguments(demo, tmp_path / "out", "none,rocket")) == 0
    assert " of 7] " not in capsys.readouterr().out  # no phase is repeated


@pytest.mark.slow
def test_killed_ablation_stops_its_training_process_and_can_be_resumed(demo, tmp_path):
    out = tmp_path / "out"
    program = [sys.executable, "-m", "rocket_hf.commands", *ablate_arguments(demo, out, "none")]
    program[program.index("--steps") + 1] = "40"
    killed = subprocess.Popen(program, stdout=subprocess.PIPE)
    checkpoints = out / "runs" / "none-seed-0" / "checkpoints"
    wait_for(lambda: any(checkpoints.glob("*")), 300)
    (training,) = children(killed.pid)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    wait_for(lambda: not is_running(training), 30)
    assert subprocess.run(program, stdout=subprocess.PIPE).returncode == 0
    steps = [record["step"] for record in read_journal(checkpoints.parent / "journal.jsonl") if "loss" in record]
    assert steps == list(range(1, 41))
    assert "--resume" in (out / "log.txt").read_text()


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def is_running(pid: int) -> bool:
    """Return whether a process is running. Zombie processes are not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
