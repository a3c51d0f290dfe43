"""Fixtures of training: generated datasets, policies, a teacher and its feature caches; and functions that train."""

import contextlib
import io
import json
import logging
import os
import resource
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file

from rocket_hf.commands import main as rocket_hf
from rocket_hf.export.policy_folder import export_policy
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.sims.vizdoom.recording import record_rooms
from rocket_hf.tiny import character_tokenizer, tiny_config, tiny_statistics
from rocket_hf.tiny_dataset import write_tiny_dataset
from rocket_hf.training.train import main
from tests.tiny_vggt import write_tiny_vggt

from ..clean_processes import free_port, run_clean

MAX_PROMPT_LENGTH = {"pi05": 110, "openvla": 80, "openvla-oft": 80}  # in characters, which are tokens here


@pytest.fixture(scope="session", autouse=True)
def no_warnings_about_missing_torchcodec_libraries():
    logging.getLogger("lerobot.utils.import_utils").setLevel(logging.ERROR)


@pytest.fixture(scope="session", autouse=True)
def no_network():
    """Hub ids are resolved from the local cache only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="session")
def image_dataset(tmp_path_factory):
    """Four episodes of 12, 15, 12 and 15 frames, cameras front (48 x 64) and wrist (32 x 32)."""
    return write_tiny_dataset(tmp_path_factory.mktemp("datasets") / "image_dataset")


@pytest.fixture(scope="session")
def video_dataset(tmp_path_factory):
    return write_tiny_dataset(tmp_path_factory.mktemp("datasets") / "video_dataset", video=True)


@pytest.fixture(scope="session")
def rooms(tmp_path_factory):
    """Three rooms with six views each, and demonstrations to their objects: 7 to 52 frames long, most about twenty."""
    folder = tmp_path_factory.mktemp("datasets") / "rooms"
    with contextlib.chdir(folder.parent):  # The engine writes its settings file into the current folder.
        record_rooms(folder, rooms=3, views=6, workers=1)
    return folder


@pytest.fixture
def dataset_copy(image_dataset, tmp_path):
    """A copy of the image dataset that a test may modify."""
    return shutil.copytree(image_dataset, tmp_path / "dataset_copy")


@pytest.fixture(scope="session")
def config():
    return tiny_config()


@pytest.fixture(scope="session")
def policies(tmp_path_factory) -> Callable[[str], Path]:
    """Function that returns the folder of a tiny policy of a family, written on its first call."""
    folder = tmp_path_factory.mktemp("policies")

    def policy(family: str) -> Path:
        return folder / family if (folder / family).exists() else write_policy(folder / family, family)

    return policy


def write_policy(folder: Path, family: str, **changes: Any) -> Path:
    config = tiny_config(family, **changes)
    torch.manual_seed(0)
    model = RocketForActionPrediction(config)
    max_prompt_length = MAX_PROMPT_LENGTH.get(family, 24)
    processor = RocketProcessor.for_config(
        config, character_tokenizer(), tiny_statistics(config), max_prompt_length=max_prompt_length
    )
    return export_policy(model, processor, folder)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    return write_tiny_vggt(tmp_path_factory.mktemp("teachers") / "vggt")


@pytest.fixture(scope="session")
def caches(image_dataset, teacher, tmp_path_factory) -> Callable[..., Path]:
    """Function that returns a feature cache of the image dataset, built on its first call."""
    folder = tmp_path_factory.mktemp("caches")

    def cache(storage: str, *more: str) -> Path:
        out = folder / "-".join([storage, *more])
        if not out.exists():
            command = ["cache", "build", str(image_dataset), "--teacher", str(teacher), "--out", str(out)]
            command += ["--device", "cpu", "--workers", "0", "--layers", "2,3,4", "--storage", storage, *more]
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                assert rocket_hf(command) == 0
        return out

    return cache


@pytest.fixture
def limit_files() -> Iterator[Callable[[int], None]]:
    """Function that limits the size of files that this process writes, in bytes, to simulate a full disk.

    The signal of the limit is ignored, so that the write fails with an OSError instead.
    """
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@dataclass
class TrainingOutcome:
    code: int
    stdout: str
    stderr: str


def run_training(*arguments: Any) -> TrainingOutcome:
    """Run `training/train.py` in this process, with accelerate's state reset before and after."""
    out, err = io.StringIO(), io.StringIO()
    reset_accelerate_state()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, handler)
        reset_accelerate_state()
    return TrainingOutcome(code, out.getvalue(), err.getvalue())


def run_ranks(count: int, out: Path, *arguments: Any, **environment: str) -> list[int | None]:
    """Run `training/train.py` in `count` processes, as `accelerate launch --config_file cpu.yaml` does.

    Return their exit codes. Their output is written to `ranks.txt` in the parent folder of `out`.
    """
    command = [*map(str, arguments), "--out", str(out)]
    return run_clean(count, run_as_rank, count, free_port(), command, environment)


def run_as_rank(rank: int, count: int, port: int, command: list[str], environment: dict[str, str]) -> None:
    os.environ |= environment | {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
        "HF_DEACTIVATE_ASYNC_LOAD": "1",
    }  # fmt: skip
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    log = Path(command[-1]).with_name("ranks.txt")
    with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            code = main(command)
        except BaseException:
            traceback.print_exc()
            code = 70
    os._exit(code)  # does not wait for the threads of gloo


def reset_accelerate_state() -> None:
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    GradientState._reset_state()


def set_options(**values: Any) -> list[str]:
    """Return `--set` options: `run__steps=3` becomes `--set run.steps=3`."""
    pairs = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in values.items()]
    return [word for pair in pairs for word in ("--set", pair)]


@pytest.fixture(scope="session")
def tiny_run(image_dataset, teacher, policies) -> Callable[..., TrainingOutcome]:
    """Function that trains with the tiny recipe and requires success."""

    def run(out: Path, *more: Any, family: str = "smolvla", **changes: Any) -> TrainingOutcome:
        outcome = run_training(
            "--recipe", "tiny", "--policy", policies(family), "--dataset", image_dataset, "--teacher", teacher,
            "--out", out, *set_options(**changes), *more,
        )  # fmt: skip
        assert outcome.code == 0, outcome.stderr
        return outcome

    return run


def journal_records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]


def step_records(out: Path) -> list[dict[str, Any]]:
    """Return the journal records of training steps."""
    return [line for line in journal_records(out) if "loss" in line]


def checkpoint_tensors(out: Path, step: int, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


def exported_weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "policy" / "model.safetensors")


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)
