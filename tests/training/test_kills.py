"""A run that is killed at twenty random times and resumed each time ends with the weights of an uninterrupted run."""

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

from .conftest import checkpoint_tensors, exported_weights, largest_difference, run_training, set_options, step_records

pytestmark = [pytest.mark.needs_lerobot, pytest.mark.slow]

KILLS, STEPS, SAVE_INTERVAL = 20, 200, 2

# Reads the arguments of one run per line and forks a process for each, so that imports happen only once.
SERVER = """
import json, os, sys
from rocket_hf.training.train import main
import lerobot.datasets.lerobot_dataset, peft  # which train.py imports late

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
    with (tmp_path / "server.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()
        process.wait(60)


def last_checkpoint_step(out: Path) -> int:
    return max(Checkpoints(out / "checkpoints", 2).steps(), default=0)


def test_twenty_kills_lose_at_most_the_steps_since_the_last_checkpoint(
    server, image_dataset, teacher, policies, tmp_path
):
    arguments = ["--recipe", "tiny", "--policy", policies("openvla"), "--dataset", image_dataset, "--teacher", teacher]
    arguments += set_options(
        run__steps=STEPS, run__save_every=SAVE_INTERVAL, run__validate_every=STEPS, run__ema=0.9, lora__dropout=0.1,
        data__augmentation__crop_area=0.8, run__batch_size=2, run__log_every=1,
    )  # fmt: skip
    assert run_training(*arguments, "--out", tmp_path / "uninterrupted").code == 0
    draw, out, reached, kills = random.Random(0), tmp_path / "killed", 0, 0
    while kills < KILLS:
        resume = ["--resume"] if (out / "recipe.yaml").exists() else []
        server.stdin.write(json.dumps([*map(str, arguments), "--out", str(out), *resume]) + "\n")
        server.stdin.flush()
        child = int(server.stdout.readline())
        if kills % 4 == 0:  # during its start
            time.sleep(draw.uniform(0.2, 1.2))
        else:
            wait_for_checkpoint_after(out, reached)
            time.sleep(draw.uniform(0, 0.5))
        done = last_journal_step(out)
        os.kill(child, signal.SIGKILL)
        assert int(server.stdout.readline()) == -signal.SIGKILL, (tmp_path / "server.txt").read_text()
        kills += 1
        reached = last_checkpoint_step(out)
        assert reached >= done - done % SAVE_INTERVAL - SAVE_INTERVAL  # one checkpoint may have been in writing
        assert reached < STEPS, "the run ended before the last kill: increase STEPS"
    outcome = run_training(*arguments, "--out", out, "--resume")
    assert outcome.code == 0, outcome.stderr
    assert reached > KILLS
    for name in ("model", "optimizer", "average", "random"):
        expected, resumed = (
            checkpoint_tensors(tmp_path / "uninterrupted", STEPS, name),
            checkpoint_tensors(out, STEPS, name),
        )
        assert largest_difference(expected, resumed) == 0, name
    assert largest_difference(exported_weights(tmp_path / "uninterrupted"), exported_weights(out)) == 0
    assert [line["step"] for line in step_records(out)] == list(range(1, STEPS + 1))
    assert [line["loss"] for line in step_records(out)] == [
        line["loss"] for line in step_records(tmp_path / "uninterrupted")
    ]


def last_journal_step(out: Path) -> int:
    """Return the last step with a complete line in the journal."""
    path = out / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return max(
        (int(line.partition(",")[0].split()[-1]) for line in lines if line.endswith("\n") and "loss" in line), default=0
    )


def wait_for_checkpoint_after(out: Path, step: int) -> None:
    end = time.monotonic() + 60
    while last_checkpoint_step(out) <= step:
        assert time.monotonic() < end, "no new checkpoint within 60 seconds"
        time.sleep(0.005)
