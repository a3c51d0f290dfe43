"""ROCKET-2 evaluations that are killed with SIGKILL and resumed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

from rocket_hf.commands import main
from rocket_hf.evaluation.episode_journal import JOURNAL
from rocket_hf.evaluation.report import REPORT
from rocket_hf.evaluation.rocket2.episode import Rocket2Episode, VisibilityRecord
from rocket_hf.evaluation.rocket2.journal import Rocket2Journal
from rocket_hf.evaluation.rocket2.players import PlayerOutput
from rocket_hf.evaluation.rocket2.simulator import Rocket2Start

from .rocket2_players import random_policy


def episode(seed: int, event: str) -> Rocket2Episode:
    outputs = [PlayerOutput((1, 0, 2)), PlayerOutput((0, 0, 0), 0.1 + 0.2, (0.25, 1 / 3))]
    records = tuple(VisibilityRecord(True, (0.5, 1 / 7), output) for output in outputs)
    return Rocket2Episode(Rocket2Start(seed, seed % 4), "lamp", event, 2, records)


def test_journal_restores_episodes_of_the_same_player_exactly(tmp_path):
    journal, other = Rocket2Journal(tmp_path / JOURNAL, "policy"), Rocket2Journal(tmp_path / JOURNAL, "random")
    episodes = [episode(2, "target"), episode(1, "none"), episode(5, "target"), episode(3, "none")]
    for each in episodes:
        journal.add_episode(each)
    other.add_episode(episode(9, "wrong"))
    again = Rocket2Journal(tmp_path / JOURNAL, "policy")
    assert again.resumable(shows_images=False) == {each.start: each for each in episodes}
    assert [start.seed for start in again.resumable(shows_images=True)] == [5, 3]


def test_killed_rocket2_evaluation_resumes_to_the_same_report(tmp_path, capsys):
    random_policy().save_pretrained(tmp_path / "policy")
    words = ["eval", str(tmp_path / "policy"), "--env", "vizdoom", "--episodes", "5", "--refresh", "30"]
    words += ["--max-steps", "8", "--workers", "0", "--parallel", "1", "--out"]
    assert main([*words, str(tmp_path / "uninterrupted")]) == 0
    killed, changed = tmp_path / "killed", tmp_path / "changed"
    command = [sys.executable, "-m", "rocket_hf.commands", *words, str(killed)]
    # A session of its own, so that the engine, a child process, is killed as well.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    end = time.monotonic() + 300
    while not (killed / JOURNAL).is_file() or (killed / JOURNAL).read_text().count("key") < 4:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (killed / REPORT).exists()

    shutil.copytree(killed, changed)
    assert main([*words, str(killed)]) == 0
    reports = [json.loads((folder / REPORT).read_text()) for folder in (tmp_path / "uninterrupted", killed)]
    for report in reports:
        del report["speed"]  # the only values that differ each time
    assert reports[0] == reports[1]
    assert not (killed / JOURNAL).exists()

    # A changed episode in the journal appears in the report, so it was not repeated.
    (changed / JOURNAL).write_text((changed / JOURNAL).read_text().replace('"steps": 8', '"steps": 7'))
    assert main([*words, str(changed)]) == 0
    episodes = json.loads((changed / REPORT).read_text())["refreshes"]["30"]["episodes"]
    assert 7 in {each["steps"] for each in episodes}
    capsys.readouterr()
