"""Evaluations that are killed with SIGKILL and resumed."""

import json
import signal
import subprocess
import sys
import time

import pytest

from rocket_hf.commands import main
from rocket_hf.evaluation.episode_journal import JOURNAL, EpisodeJournal
from rocket_hf.evaluation.episode_simulator import EpisodeStart
from rocket_hf.evaluation.report import REPORT

from .policies import export_pushing_policy


def result(task, seed, success):
    return {"task": task, "seed": seed, "success": success, "steps": 3, "max_steps": 9}


def test_journal_keeps_results_of_the_same_policy_and_settings(tmp_path):
    path = tmp_path / JOURNAL
    journal = EpisodeJournal(path, ["policy", {"seed": 1}])
    journal.add(result("a", 0, True))
    with path.open("a") as file:
        file.write('{"key": "' + journal.key)  # killed while it wrote a line
    EpisodeJournal(path, ["other policy", {"seed": 1}]).add(result("a", 1, True))
    journal.add(result("a", 2, False))
    again = EpisodeJournal(path, ["policy", {"seed": 1}])
    assert again.results == {
        EpisodeStart("a", 0): result("a", 0, True), EpisodeStart("a", 2): result("a", 2, False)
    }  # fmt: skip


def test_episodes_whose_images_a_report_shows_are_repeated(tmp_path):
    journal = EpisodeJournal(tmp_path / JOURNAL, "policy")
    for task, seed, success in [("b", 0, False), ("b", 1, True), ("a", 5, True), ("a", 6, True)]:
        journal.add(result(task, seed, success))
    journal = EpisodeJournal(tmp_path / JOURNAL, "policy")
    assert len(journal.resumable(["a", "b"], shows_images=False)) == 4
    remaining = journal.resumable(["a", "b"], shows_images=True)
    assert list(remaining) == [EpisodeStart("a", 6), EpisodeStart("b", 1)]
    assert list(journal.resumable(["b"], shows_images=False)) == [EpisodeStart("b", 0), EpisodeStart("b", 1)]


@pytest.mark.needs_lerobot
def test_killed_evaluation_resumes_to_the_same_report(tmp_path, capsys):
    policy = export_pushing_policy(tmp_path / "pushing", spread=0.4)
    words = ["eval", str(policy), "--tasks", "button-press-v3", "--episodes", "6", "--max-steps", "45"]
    words += ["--workers", "0", "--parallel", "1", "--out"]
    assert main([*words, str(tmp_path / "uninterrupted")]) == 0
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "rocket_hf.commands", *words, str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    end = time.monotonic() + 300
    while not (out / JOURNAL).is_file() or (out / JOURNAL).read_text().count("key") < 3:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert not (out / REPORT).exists()
    before = (out / JOURNAL).read_text()
    assert main([*words, str(out)]) == 0
    assert before.count('"key"') >= 3 and not (out / JOURNAL).exists()
    reports = [json.loads((folder / REPORT).read_text()) for folder in (tmp_path / "uninterrupted", out)]
    assert reports[0] == reports[1]
    for name in ("success.png", "failure.png"):
        images = [(folder / "rollouts" / name).read_bytes() for folder in (tmp_path / "uninterrupted", out)]
        assert images[0] == images[1]
