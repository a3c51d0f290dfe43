"""Recordings that are killed with SIGKILL, in real processes with lerobot's own writer, and resumed."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rocket_hf.commands import main
from rocket_hf.errors import UserError
from rocket_hf.rgbd_dataset import RgbdFrames
from rocket_hf.sims.expert import Demonstration
from rocket_hf.sims.recording_journal import RecordingJournal
from rocket_hf.tiny import tiny_config
from rocket_hf.training.data.lerobot_data import RobotDataset
from rocket_hf.training.recipe import DatasetConfig

from .conftest import TASKS

pytestmark = pytest.mark.needs_lerobot

EPISODES, FRAMES, SIZE = 12, 8, 64

# Records synthetic episodes with the real writer. Reads one folder per line and forks a process for each, so that
# imports happen only once.
SERVER = f"""
import os, sys
from dataclasses import dataclass
from pathlib import Path
import numpy as np
import rocket_hf.sims.recording_writer as recording_writer
from rocket_hf.sims.dataset_writer import resume_dataset, video_feature, vector_feature, writer_options
from rocket_hf.sims.demonstrations import record_episodes
from rocket_hf.sims.expert import Demonstration
from rocket_hf.sims.recording import RecordingPlan
from lerobot.datasets.lerobot_dataset import LeRobotDataset

recording_writer.COMMIT_BYTES = 5 * {FRAMES * SIZE * SIZE * 3}
recording_writer.COMMIT_BYTES_AFTER_KILL = 2 * {FRAMES * SIZE * SIZE * 3}

@dataclass
class Request:
    task: str
    number: int

class Simulator:
    def handle(self, request):
        draw = np.random.default_rng(request.number)
        frames = [
            {{
                "observation.images.front": draw.integers(0, 256, ({SIZE}, {SIZE}, 3), dtype=np.uint8),
                "action": draw.normal(size=2).astype(np.float32),
                "number": np.array([request.number]),
            }}
            for _ in range({FRAMES})
        ]
        return Demonstration(f"task {{request.number % 3}}", request.number, request.number % 2, frames)

    def close(self):
        pass

def create(folder):
    features = {{
        "observation.images.front": video_feature({SIZE}, 3),
        "action": vector_feature("xy"),
        "number": {{"dtype": "int64", "shape": (1,), "names": None}},
    }}
    return LeRobotDataset.create(fps=10, features=features, **writer_options(folder))

def run(folder):
    plan = RecordingPlan("synthetic", ("a", "b"), {EPISODES // 2}, {SIZE}, False, 0)
    requests = [Request("ab"[number % 2], number) for number in range({EPISODES})]
    progress = record_episodes(Path(folder), plan, requests, Simulator, 1, create, resume_dataset)
    assert progress.episodes == {EPISODES} and progress.dropped == {EPISODES // 2}

print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout = sys.stderr
        run(line.strip())
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True
        )
        process.log = log
        assert process.stdout.readline() == "ready\n", log.read_text()
        yield process
        process.stdin.close()
        process.wait(60)


def start_recording(server, folder):
    server.stdin.write(f"{folder}\n")
    server.stdin.flush()
    return int(server.stdout.readline())


def committed_episodes(folder):
    """Return the number of episodes that are complete in the dataset."""
    journal = RecordingJournal(folder)
    if journal.state is not None:
        return journal.state["progress"]["episodes"]
    path = folder / "meta" / "simulation.json"
    return json.loads(path.read_text())["progress"]["episodes"] if path.is_file() else 0


def stored_episodes(folder):
    """Return the number of episodes that a resumed recording does not record again."""
    numbers = [int(path.stem) for path in (folder / ".recording" / "episodes").glob("*.npz")]
    return max([committed_episodes(folder), *(number + 1 for number in numbers)])


def read_rows(folder):
    return [row for path in sorted(folder.glob("data/*/*.parquet")) for row in pq.read_table(path).to_pylist()]


def assert_same_for_lerobot(first, second):
    """Compare two datasets as lerobot reads them: every frame, its image and the statistics."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    datasets = [LeRobotDataset("local/test", root=folder, video_backend="pyav") for folder in (first, second)]
    assert len(datasets[0]) == len(datasets[1])
    for item, other in zip(*datasets, strict=True):
        assert item.keys() == other.keys()
        for key, value in item.items():
            assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key
    stats, others = (dataset.meta.stats for dataset in datasets)
    for key, values in stats.items():
        for name, value in values.items():
            np.testing.assert_allclose(value, others[key][name], rtol=1e-6, atol=1e-9, err_msg=f"{key} {name}")


def test_recording_killed_at_random_times_keeps_every_stored_episode(server, tmp_path):
    uninterrupted, folder = tmp_path / "uninterrupted", tmp_path / "killed"
    start = time.monotonic()
    start_recording(server, uninterrupted)
    assert server.stdout.readline() == "0\n", server.log.read_text()
    # A tenth of the uninterrupted recording at most per process: at least nine kills on a machine of any speed.
    shortest_limit = (time.monotonic() - start) / 10
    (tmp_path / "killed").mkdir()
    draw, kills, longest, reached = random.Random(0), 0, shortest_limit, (0, 0)
    while True:
        child = start_recording(server, folder)
        time.sleep(draw.uniform(0, longest))
        with contextlib.suppress(ProcessLookupError):  # It may have ended.
            os.kill(child, signal.SIGKILL)
        code = server.stdout.readline()
        if code == "0\n":
            break
        assert code == f"{-signal.SIGKILL}\n", server.log.read_text()
        kills += 1
        now = (committed_episodes(folder), stored_episodes(folder))
        assert now >= reached and now[1] >= reached[1], "a kill lost an episode"
        longest = shortest_limit if now > reached else longest * 1.2  # A process needs some time for its first episode.
        reached = now
        assert kills < 200
    assert kills >= 5
    assert_same_for_lerobot(uninterrupted, folder)
    assert {path.name for path in folder.iterdir()} == {"data", "meta", "videos"}
    simulations = [json.loads((path / "meta" / "simulation.json").read_text()) for path in (uninterrupted, folder)]
    assert simulations[0] == simulations[1]


def test_files_of_the_user_survive_a_killed_recording(server, tmp_path):
    folder = tmp_path / "recording"
    child = start_recording(server, folder)
    while stored_episodes(folder) < 3:
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    server.stdout.readline()
    (folder / "README.md").write_text("mine")
    with pytest.raises(UserError, match="is incomplete, because its recording was killed: run the same `rocket-hf sim"):
        RobotDataset(DatasetConfig(id=str(folder)), tiny_config())
    start_recording(server, folder)
    assert server.stdout.readline() == "0\n", server.log.read_text()
    assert (folder / "README.md").read_text() == "mine"


@pytest.mark.slow
def test_simulate_command_resumes_after_each_of_two_kills(recorded, tmp_path, capsys):
    folder = tmp_path / "demonstrations"
    words = ["simulate", "metaworld", "--tasks", *TASKS, "--episodes", "2", "--image-size", "32", "--depth"]
    words += ["--workers", "1", "--out", str(folder)]
    for episodes in (1, 3):
        process = subprocess.Popen(
            [sys.executable, "-m", "rocket_hf.commands", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while stored_episodes(folder) < episodes:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
    assert main([*words[:-1], str(folder), "--seed", "7"]) == 2
    assert "contains a recording with first_seed 0, not 7: choose another folder" in capsys.readouterr().err
    assert main(words) == 0
    assert read_rows(folder) == read_rows(recorded[0])
    frames, expected = RgbdFrames(folder), RgbdFrames(recorded[0])
    for index in range(len(expected)):
        assert torch.equal(frames[index].images, expected[index].images), index
        assert torch.equal(frames[index].depth, expected[index].depth), index
    recordings = [json.loads((path / "meta" / "simulation.json").read_text()) for path in (folder, recorded[0])]
    assert recordings[0] == recordings[1]


def test_journal_returns_the_same_episode(tmp_path):
    frames = [
        {"image": np.full((2, 2, 3), number, np.uint8), "flag": np.array([number > 0]), "seed": np.array([number])}
        for number in range(3)
    ]
    journal = RecordingJournal(tmp_path)
    (tmp_path / ".recording" / "episodes").mkdir(parents=True)
    size = journal.save_episode(4, Demonstration("öffne die Schublade", 5, 2, frames))
    ((restored, restored_size),) = journal.read_episodes(4)
    assert restored_size == size
    assert (restored.instruction, restored.seed, restored.failed_attempts) == ("öffne die Schublade", 5, 2)
    for frame, other in zip(frames, restored.frames, strict=True):
        assert frame.keys() == other.keys()
        for key, value in frame.items():
            np.testing.assert_array_equal(value, other[key])
            assert value.dtype == other[key].dtype


def test_damaged_journal_is_a_user_error(tmp_path):
    (tmp_path / ".recording" / "episodes").mkdir(parents=True)
    (tmp_path / ".recording" / "episodes" / "000000.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"000000.npz cannot be read .*: remove it to record this episode again"):
        list(RecordingJournal(tmp_path).read_episodes(0))


@pytest.mark.parametrize("limit", [20_000, pytest.param(60_000, marks=pytest.mark.slow)])
def test_full_disk_is_one_sentence_and_loses_no_episode(limit, recorded, tmp_path, capsys):
    """The limit of a file's size makes writes fail like a full disk, in lerobot's writer or in the journal."""
    folder = tmp_path / "demonstrations"
    words = ["simulate", "metaworld", "--tasks", *TASKS, "--episodes", "2", "--image-size", "32", "--depth"]
    words += ["--workers", "1", "--out", str(folder)]

    def limit_file_size():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    done = subprocess.run(
        [sys.executable, "-m", "rocket_hf.commands", *words], capture_output=True, text=True, preexec_fn=limit_file_size
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "cannot be written" in done.stderr
    assert main(words) == 0
    assert read_rows(folder) == read_rows(recorded[0])
    shutil.rmtree(folder)


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"plan": {}, "progress": {}, "files": 3, "copies": ""}', "{"])
def test_malformed_state_of_a_journal_is_a_user_error(text, tmp_path):
    (tmp_path / ".recording").mkdir()
    (tmp_path / ".recording" / "state.json").write_text(text)
    with pytest.raises(UserError, match=r"state\.json .*"):
        RecordingJournal(tmp_path)
