"""A real run, killed at twenty random moments: every survivor goes on, and ends where a run that nobody killed ends."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rocket_hf.training.checkpoint import Checkpoints

from .conftest import checkpoint, exported, largest_difference, run_training, settings, steps_of

pytestmark = [pytest.mark.needs_lerobot, pytest.mark.slow]

KILLS, STEPS, EVERY = 20, 200, 2

# Waits for what it has to run, one line each, and forks it, so that nothing is imported twenty times.
SERVER = """
import json, os, sys
from rocket_hf.training.train import main
import lerobot.datasets.lerobot_dataset, peft  # which a run imports late

print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout = sys.stderr
        os._exit(main(json.loads(line)))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def server(tmp_path):
    with (tmp_path / "said.txt").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()
        process.wait(60)


def last_step(out: Path) -> int:
    return max(Checkpoints(out / "checkpoints", 2).steps(), default=0)


def test_twenty_kills_lose_the_steps_since_the_last_checkpoint_at_most(server, stored, teacher, policies, tmp_path):
    given = ["--recipe", "tiny", "--policy", policies("openvla"), "--dataset", stored, "--teacher", teacher]
    given += settings(
        run__steps=STEPS, run__save_every=EVERY, run__validate_every=STEPS, run__ema=0.9, lora__dropout=0.1,
        data__augmentation__crop_area=0.8, run__batch_size=2, run__log_every=1,
    )  # fmt: skip
    assert run_training(*given, "--out", tmp_path / "whole").code == 0
    draw, out, reached, kills = random.Random(0), tmp_path / "killed", 0, 0
    while kills < KILLS:
        resume = ["--resume"] if (out / "recipe.yaml").exists() else []
        server.stdin.write(json.dumps([*map(str, given), "--out", str(out), *resume]) + "\n")
        server.stdin.flush()
        child = int(server.stdout.readline())
        if kills % 4 == 0:  # while it starts, or wherever it is by then
            time.sleep(draw.uniform(0.2, 1.2))
        else:
            wait_until_beyond(out, reached)
            time.sleep(draw.uniform(0, 0.5))
        done = seen_steps(out)
        os.kill(child, signal.SIGKILL)
        assert int(server.stdout.readline()) == -signal.SIGKILL, (tmp_path / "said.txt").read_text()
        kills += 1
        reached = last_step(out)
        assert reached >= done - done % EVERY - EVERY  # the step that is being saved is not lost yet
        assert reached < STEPS, "it came to its end before all kills: ask for more steps"
    outcome = run_training(*given, "--out", out, "--resume")
    assert outcome.code == 0, outcome.stderr
    assert reached > KILLS
    for name in ("model", "optimizer", "average", "random"):
        whole, survived = checkpoint(tmp_path / "whole", STEPS, name), checkpoint(out, STEPS, name)
        assert largest_difference(whole, survived) == 0, name
    assert largest_difference(exported(tmp_path / "whole"), exported(out)) == 0
    assert [line["step"] for line in steps_of(out)] == list(range(1, STEPS + 1))
    assert [line["loss"] for line in steps_of(out)] == [line["loss"] for line in steps_of(tmp_path / "whole")]


def seen_steps(out: Path) -> int:
    """The number of the last step whose line is in the journal."""
    path = out / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return max(
        (int(line.partition(",")[0].split()[-1]) for line in lines if line.endswith("\n") and "loss" in line), default=0
    )


def wait_until_beyond(out: Path, step: int) -> None:
    end = time.monotonic() + 60
    while last_step(out) <= step:
        assert time.monotonic() < end, "it does not go on"
        time.sleep(0.005)
