"""Runs of a study: real commands in parallel processes, resumed after kill -9 and Ctrl-C, and exactly repeatable.

python -m pytest tests/study/test_study_run.py -m "slow or not slow"
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rocket_hf.commands import main
from rocket_hf.study.study_folder import StudyFolder, open_study

from .studies import PAIRS, plan_of, write_study

PHASES = {
    "P": {
        "question": "Does it run?", "settings": ["S2"], "variants": ["none", "rocket"], "seeds": [100],
        "primary": "rocket - none",
    }
}  # fmt: skip
VARIANTS = {"none": {}, "rocket": {"recipe": "rocket", "teacher": "embedded", "set": PAIRS}}
UNITS = 7  # a recording, a cache, an untrained policy, and a training and an evaluation of each variant


def write_small_study(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return write_study(folder / "small.yaml", variants=VARIANTS, phases=PHASES, headroom=None)


def run_arguments(file: Path, out: Path, workers: int = 2) -> list[str]:
    return ["study", "run", str(file), "--out", str(out), "--quick", "--workers", str(workers), "--device", "cpu"]


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> StudyFolder:
    """Complete quick run of a study with two variants."""
    folder = tmp_path_factory.mktemp("study")
    assert main(run_arguments(write_small_study(folder), folder / "out")) == 0
    return open_study(folder / "out")


def test_quick_run_trains_and_evaluates_every_arm_once(study):
    assert len(study.results) == UNITS
    assert plan_of(study).is_complete("P")
    assert {path.name for path in (study.path / "report").iterdir()} >= {"report.md", "report.json", "P-S2.png"}
    for name, result in study.results.items():
        assert result["cpu_seconds"] > 0, name
        assert result["command"].startswith("OMP_NUM_THREADS=1 "), name
        assert (study.path / "logs" / f"{name}.txt").read_text().startswith(f"$ {result['command']}\n")


def test_variants_of_a_seed_share_data_untrained_weights_and_starts(study):
    trainings = [shlex.split(study.results[f"train/S2/{name}/seed-100"]["command"]) for name in VARIANTS]
    for option in ("--policy", "--dataset"):
        assert len({words[words.index(option) + 1] for words in trainings}) == 1
    starts = [
        [episode[:2] for episode in study.results[f"evaluate/S2/{name}/seed-100/nominal"]["episodes"]]
        for name in VARIANTS
    ]
    assert starts[0] == starts[1]
    journals = [first_step(study.path / "units" / f"train/S2/{name}/seed-100") for name in VARIANTS]
    assert journals[0]["action/flow_matching"] == journals[1]["action/flow_matching"]  # equal samples and noise


def first_step(run: Path) -> dict:
    lines = (run / "journal.jsonl").read_text().splitlines()
    return next(record for line in lines if "loss" in (record := json.loads(line)))


def test_complete_study_starts_no_unit_again(study, capsys):
    before = {name: result["seconds"] for name, result in study.results.items()}
    assert main(run_arguments(study.path.parent / "small.yaml", study.path)) == 0
    assert "$ OMP_NUM_THREADS" not in capsys.readouterr().out
    assert {name: result["seconds"] for name, result in open_study(study.path).results.items()} == before


def test_failed_unit_is_reported_with_its_log_and_is_repeated(study, tmp_path, capsys):
    """A recipe setting that training rejects; its error is the last line of the log."""
    variants = {"none": {"set": {"optimizer.lr": -1}}}
    phases = {"P": {"question": "?", "settings": ["S2"], "variants": ["none"], "seeds": [100]}}
    file = write_study(tmp_path / "small.yaml", variants=variants, phases=phases, headroom=None)
    out = tmp_path / "out"
    for name in ("record/S2", "untrained/S2/84px-patch14-vision1/seed-100"):
        copy_unit(study, name, out)
    assert main(run_arguments(file, out)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(
        "rocket-hf study: train/S2/none/seed-100 failed: train.py: optimizer.lr must be above 0, got"
    )
    assert f"its output is in {out / 'logs/train/S2/none/seed-100.txt'}" in error
    assert main(run_arguments(file, out)) == 2  # The folder is not locked, and the unit is started again.
    log = (out / "logs/train/S2/none/seed-100.txt").read_text()
    assert log.count("optimizer.lr must be above 0") == 2


def copy_unit(study: StudyFolder, name: str, out: Path) -> None:
    """Use the output of a complete study's unit in another study, by a link."""
    if not (out / "study.yaml").exists():
        from rocket_hf.study.study_folder import start_study

        start_study(out.parent / "small.yaml", out, is_quick=True)
    target = out / "units" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(study.path / "units" / name)
    result = out / "results" / f"{name}.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text((study.path / "results" / f"{name}.json").read_text())


def test_folder_in_use_is_rejected(study, capsys):
    lock = "import sys, time; from pathlib import Path; from rocket_hf.folder_lock import FolderLock\n"
    lock += f"with FolderLock(Path({str(study.path)!r})): print('locked', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        assert main(run_arguments(study.path.parent / "small.yaml", study.path)) == 2
    assert f"{study.path} is in use by process {holder.pid}" in capsys.readouterr().err


# Repetition and interruption in real processes, which takes minutes


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_printed_commands_of_an_arm_reproduce_its_weights_and_successes_exactly(study, variant, tmp_path):
    """The commands are repeated by a shell, in another folder: all of the arm's units, from the recording on."""
    arm = [unit for unit in plan_of(study).units(["P"]) if unit.name.startswith(("record", "untrained", "cache"))]
    arm += [unit for unit in plan_of(study).units(["P"]) if f"/{variant}/" in unit.name]
    program = f"{shlex.quote(sys.executable)} -m rocket_hf.commands"
    for unit in arm:
        command = study.results[unit.name]["command"].replace(str(study.path), str(tmp_path))
        shell = command.replace("rocket-hf ", f"{program} ", 1)
        subprocess.run(
            shell, shell=True, check=True, capture_output=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        )
    train, evaluation = f"train/S2/{variant}/seed-100", f"evaluate/S2/{variant}/seed-100/nominal"
    weights = [load_file(root / "units" / train / "policy" / "model.safetensors") for root in (study.path, tmp_path)]
    assert weights[0].keys() == weights[1].keys()
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    report = json.loads((tmp_path / "units" / evaluation / "evaluation.json").read_text())
    repeated = [[episode["task"], episode["seed"], episode["success"]] for episode in report["episodes"]]
    assert repeated == study.results[evaluation]["episodes"]


def start_process(file: Path, out: Path) -> subprocess.Popen:
    words = [sys.executable, "-m", "rocket_hf.commands", *run_arguments(file, out)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def wait_for_log(out: Path, kind: str) -> None:
    """Wait until a unit of this kind has started."""
    end = time.monotonic() + 300
    while not list((out / "logs" / kind).rglob("*.txt")):
        assert time.monotonic() < end, f"no unit of the kind {kind} has started"
        time.sleep(0.05)


def group_members(out: Path) -> list[int]:
    """Return the processes with this study's folder in their environment or arguments, except this one."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and int(process.name) != os.getpid():
            try:
                descriptors = [os.readlink(entry) for entry in (process / "fd").iterdir()]
            except OSError:
                continue
            if any(descriptor.startswith(str(out / "logs")) for descriptor in descriptors):
                found.append(int(process.name))
    return found


def wait_for_end_of_units(out: Path) -> None:
    end = time.monotonic() + 30
    while group_members(out):
        assert time.monotonic() < end, f"units are still running: {group_members(out)}"
        time.sleep(0.1)


@pytest.mark.slow
def test_study_killed_at_any_unit_resumes_with_equal_results(study, tmp_path):
    file, out = write_small_study(tmp_path), tmp_path / "out"
    for kind in ("record", "untrained", "cache", "train", "evaluate"):
        process = start_process(file, out)
        wait_for_log(out, kind)
        time.sleep(1.0)
        process.kill()
        process.wait()
        wait_for_end_of_units(out)
    assert main(run_arguments(file, out)) == 0
    resumed = open_study(out)
    assert resumed.results.keys() == study.results.keys()
    for name, result in resumed.results.items():
        if name.startswith("evaluate/"):
            assert result["episodes"] == study.results[name]["episodes"]
        if name.startswith("train/"):
            files = [root / "units" / name / "policy" / "model.safetensors" for root in (study.path, out)]
            first, second = map(load_file, files)
            assert all(first[key].equal(second[key]) for key in first)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_stops_all_units_and_exits_with_130(number, tmp_path):
    file, out = write_small_study(tmp_path), tmp_path / "out"
    process = start_process(file, out)
    wait_for_log(out, "record")
    time.sleep(3.0)
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert output.strip().splitlines()[-1] == f"rocket-hf study: interrupted. Repeat the command to resume {out}."
    assert "Traceback" not in output
    assert not group_members(out)
    assert main(run_arguments(file, out)) == 0
