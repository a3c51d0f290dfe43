"""Two machines without a shared folder: two launchers on loopback, each in a working folder of its own.

Both have copies of the inputs. Only the first has the folder of the run.
"""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from accelerate.utils import gather_object

from rocket_hf.errors import UserError
from rocket_hf.training.distributed.agreement import RankBatches, SharedError, disconnect, shared_errors

from ...clean_processes import free_port, run_clean
from ..conftest import checkpoint_tensors, exported_weights, largest_difference, set_options
from ..test_resume import untimed_records

pytestmark = pytest.mark.needs_lerobot

INPUTS = ["--policy", "policy", "--dataset", "dataset", "--teacher", "teacher", "--out", "run"]
# Settings that draw random numbers on each rank.
CHANGES = {
    "run__steps": 4, "run__save_every": 2, "run__keep": 9, "run__ema": 0.9, "run__validate_every": 2,
    "data__augmentation__crop_area": 0.8, "lora__dropout": 0.1, "run__log_every": 1,
}  # fmt: skip


@pytest.fixture
def machines(tmp_path, image_dataset, teacher, policies) -> list[Path]:
    """The working folders of two machines, with copies of the inputs."""
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        for name, source in {"dataset": image_dataset, "teacher": teacher, "policy": policies("smolvla")}.items():
            shutil.copytree(source, folder / name)
    return folders


def launch(folders: list[Path], *words: Any, **environment: str) -> list[subprocess.CompletedProcess[str]]:
    """Run `rocket-hf train` on all machines at the same time, with one process each."""
    port = str(free_port())
    variables = os.environ | {
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "HF_DEACTIVATE_ASYNC_LOAD": "1"
    }  # fmt: skip
    flags = ["--config_file", "cpu", "--num_machines", "2", "--num_processes", "2", "--main_process_ip", "127.0.0.1"]
    command = [sys.executable, "-m", "rocket_hf.commands", "train", *flags, "--main_process_port", port]
    settings = {"env": variables | environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [
        subprocess.Popen([*command, "--machine_rank", str(rank), *map(str, words)], cwd=folder, **settings)
        for rank, folder in enumerate(folders)
    ]
    outputs = [process.communicate(timeout=600) for process in processes]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(processes, outputs, strict=True)
    ]


@pytest.mark.parametrize(
    "environment",
    [pytest.param({}, id="ddp"), pytest.param({"ACCELERATE_USE_FSDP": "true"}, id="fsdp2", marks=pytest.mark.slow)],
)
def test_run_resumes_from_the_folder_of_the_first_machine_alone(machines, environment):
    words = ["--recipe", "tiny", *INPUTS, *set_options(**CHANGES)]
    done = launch(machines, *words, **environment)
    assert [process.returncode for process in done] == [0, 0], done
    assert "2 processes on 2 machines, the first on cpu" in done[0].stdout
    uninterrupted = (machines[0] / "run").rename(machines[0].parent / "uninterrupted")
    shutil.copytree(uninterrupted, machines[0] / "run")
    for path in ("policy", "checkpoints/step-00000004"):
        shutil.rmtree(machines[0] / "run" / path)

    done = launch(machines, *words, "--resume", **environment)
    assert [process.returncode for process in done] == [0, 0], done
    resumed = machines[0] / "run"
    for name in ("model", "optimizer", "average", "random"):
        tensors = [checkpoint_tensors(run, 4, name) for run in (uninterrupted, resumed)]
        assert largest_difference(*tensors) == 0, name
    assert largest_difference(exported_weights(uninterrupted), exported_weights(resumed)) == 0
    assert untimed_records(uninterrupted) == untimed_records(resumed)
    assert not (machines[1] / "run").exists()


def remove_dataset(folder: Path) -> str:
    shutil.rmtree(folder / "dataset")
    return "dataset"


def remove_recipe(folder: Path) -> str:
    (folder / "mine.yaml").unlink()
    return "there is no recipe 'mine.yaml'"


def change_recipe(folder: Path) -> str:
    (folder / "mine.yaml").write_text("like: tiny\nname: tiny\nrun: {seed: 7}\n")
    return "the recipe of process 1 differs in run.seed: start the same command with the same recipe files"


def truncate_policy(folder: Path) -> str:
    path = folder / "policy" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    return "model.safetensors"


@pytest.mark.parametrize("damage", [remove_dataset, remove_recipe, change_recipe, truncate_policy])
def test_user_error_of_one_machine_ends_both_with_one_sentence(machines, damage):
    for folder in machines:
        (folder / "mine.yaml").write_text("like: tiny\nname: tiny\n")
    message = damage(machines[1])
    done = launch(machines, "--recipe", "mine.yaml", *INPUTS, *set_options(**CHANGES))
    assert [process.returncode for process in done] == [2, 2], done
    for process in done:
        (line,) = process.stderr.splitlines()
        assert line.startswith("train.py: ") and message in line
        assert damage is change_recipe or line.startswith("train.py: process 1 on ")
    assert not any((folder / "run").exists() for folder in machines)


def read_damaged_data(rank: int, folder: Path, port: int) -> None:
    """Take four steps in which both ranks communicate. The second rank cannot read the data of the second step."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    processes = PartialState(cpu=True)

    def read() -> Iterator[int]:
        for step in range(4):
            if rank == 1 and step == 1:
                raise UserError("the video cannot be read")
            yield step

    batches, received = RankBatches(read(), processes), []
    for _ in range(4):
        received.append(next(batches))
        gather_object([rank])
    try:
        with shared_errors():
            batches.raise_deferred_error()
    except SharedError as error:
        (folder / f"{rank}.txt").write_text(f"{received} {error}")
        disconnect(processes)
        os._exit(2)


def test_damaged_data_of_one_rank_ends_both_when_they_next_agree(tmp_path):
    assert run_clean(2, read_damaged_data, tmp_path, free_port()) == [2, 2]
    error = f"process 1 on {socket.gethostname()}: the video cannot be read"
    assert (tmp_path / "0.txt").read_text() == f"[0, 1, 2, 3] {error}"
    assert (tmp_path / "1.txt").read_text() == f"[0, 0, 0, 0] {error}"
