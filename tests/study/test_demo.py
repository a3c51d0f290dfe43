"""Interrupting and resuming the demo. The tests of the README run a short demo without interruption."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

COMMAND = [sys.executable, "-m", "rocket_hf.commands", "demo", "--episodes", "2", "--steps", "6", "--rollouts", "1"]
PHASES = ["simulate", "pairs", "cache", "train none", "train rocket", "rollouts untrained", "rollouts", "video",
          "publish", "load"]  # fmt: skip


def wait_for(condition, process, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.slow
def test_interrupted_demo_is_resumed_without_repeating_phases(tmp_path):
    progress = tmp_path / "runs" / "demo" / "progress.json"
    interrupted = subprocess.Popen(COMMAND, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: progress.is_file() and "cache" in json.loads(progress.read_text())["results"], interrupted)
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.wait(120) == 130
    recorded = (tmp_path / "runs" / "demo" / "dataset" / "meta" / "info.json").stat().st_mtime_ns

    done = subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "demo" / "dataset" / "meta" / "info.json").stat().st_mtime_ns == recorded
    report = json.loads((tmp_path / "runs" / "demo" / "report.json").read_text())
    assert list(report["seconds"]) == PHASES and all(seconds > 0 for seconds in report["seconds"].values())
    assert {name: episodes for name, (_, episodes) in report["success"].items()} == dict.fromkeys(report["success"], 4)
    assert report["loaded"]["distance"] <= report["loaded"]["tolerance"]
    figure = (tmp_path / "runs" / "demo" / "report.png").read_bytes()
    assert figure.startswith(b"\x89PNG") and len(figure) > 50_000

    longer = subprocess.run([*COMMAND, "--steps", "7"], cwd=tmp_path, capture_output=True, text=True)
    assert longer.returncode == 2
    assert "was started with steps 6, not 7" in longer.stderr


@pytest.mark.slow
def test_demo_completes_however_often_it_is_killed(tmp_path):
    """The time until a kill grows only if a process was killed before it could finish anything."""
    demo, draw, longest, kills = tmp_path / "runs" / "demo", random.Random(0), 10.0, 0
    reached: set[str] = set()
    while True:
        process = subprocess.Popen(COMMAND, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            _, errors = process.communicate(timeout=draw.uniform(1, longest))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            progress = stored_progress(demo)
            assert reached <= progress, "a kill lost results"
            longest, reached = (longest, progress) if progress > reached else (longest * 1.3, progress)
            assert kills < 100
            continue
        assert process.returncode == 0, errors
        break
    assert kills > 3
    report = json.loads((demo / "report.json").read_text())
    assert list(report["seconds"]) == PHASES
    assert report["loaded"]["distance"] <= report["loaded"]["tolerance"]
    assert not list(tmp_path.rglob(".*.partial-*")) and not list(tmp_path.rglob(".lock"))


def stored_progress(demo):
    """Return the completed phases of a demo."""
    path = demo / "progress.json"
    return set(json.loads(path.read_text())["results"]) if path.is_file() else set()
