"""Checkpoints of a run, each written atomically: an interrupted write leaves the previous checkpoints intact.

A checkpoint is a folder `step-00001000` with safetensors files and a state.json. It is written under a temporary name,
flushed to disk and renamed. Tensors are stored unsharded and by name, so a run can be resumed with any number of ranks.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rocket_hf.errors import UserError
from rocket_hf.files import sync

from .distributed.placement import Optimizer, optimizer_state, prepare_optimizer_for_loading
from .distributed.tensor_storage import StoredTensor, gather_tensor, overwrite_tensor, stored_tensor
from .optimization import MovingAverage, trainable_parameters

NAME = "step-{:08d}"
NAME_PATTERN = re.compile(r"step-(\d{8})")
TEMPORARY_PREFIX = ".partial-"
STATE = "state.json"


@dataclass
class Progress:
    """Progress of a run. The position in the data follows from it: the next sample is number `step * batch size`."""

    step: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    best_step: int | None = None
    best_error: float | None = None


class Checkpoints:
    """The checkpoints in one folder, of which the `keep` latest and the best are kept."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, in ascending order."""
        if not self.folder.is_dir():
            return []
        matches = (NAME_PATTERN.fullmatch(path.name) for path in self.folder.iterdir() if (path / STATE).is_file())
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> Path:
        return self.folder / NAME.format(step)

    def remove_old(self, best_step: int | None) -> None:
        """Remove all checkpoints except the latest and the best, and the remains of interrupted writes."""
        kept = {*self.steps()[-self.keep :], best_step}
        for path in self.folder.iterdir():
            match = NAME_PATTERN.fullmatch(path.name)
            if path.name.startswith(TEMPORARY_PREFIX) or (match and int(match[1]) not in kept):
                shutil.rmtree(path)

    def save(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Optimizer,
        average: MovingAverage | None,
        progress: Progress,
    ) -> Path:
        """Gather all tensors and write them in the main process. All ranks must call this; if the write fails, all of
        them raise."""
        files = {
            "model": {name: gather_tensor(parameter) for name, parameter in trainable_parameters(model)},
            "optimizer": {name: gather_tensor(value) for name, value in optimizer_state(model, optimizer).items()},
            "average": (
                {name: gather_tensor(value) for name, value in average.stored_tensors(model).items()} if average else {}
            ),
            "random": random_states(accelerator),
        }
        failure = [""]
        if accelerator.is_main_process:
            try:
                self.write(progress, files)
            except (OSError, SafetensorError) as error:
                failure = [str(error)]
        if reason := "".join(gather_object(failure)):
            steps = self.steps()
            previous = f"the checkpoint of step {steps[-1]} is intact" if steps else "there is no earlier checkpoint"
            raise UserError(
                f"the checkpoint of step {progress.step} could not be written to {self.folder}: {reason}; {previous}"
            )
        return self.path(progress.step)

    def write(self, progress: Progress, files: Mapping[str, dict[str, Tensor]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f"{TEMPORARY_PREFIX}{NAME.format(progress.step)}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            for name, tensors in files.items():
                if tensors:
                    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
                    save_file(contiguous, temporary / f"{name}.safetensors")
            (temporary / STATE).write_text(json.dumps(asdict(progress)))
            for path in [*temporary.iterdir(), temporary]:
                sync(path)
            target = self.path(progress.step)
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)
            sync(self.folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self.remove_old(progress.best_step)

    def load(
        self,
        step: int,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Optimizer,
        average: MovingAverage | None,
    ) -> Progress:
        """Restore weights, optimizer, average and random states from the checkpoint of a step."""
        folder = self.path(step)
        load_trainable_weights(model, read_tensors(folder, "model"), folder)
        prepare_optimizer_for_loading(optimizer)
        load_tensors_into(optimizer_state(model, optimizer), read_tensors(folder, "optimizer"), folder)
        if average is not None:
            load_tensors_into(average.stored_tensors(model), read_tensors(folder, "average"), folder)
        restore_random_states(accelerator, read_tensors(folder, "random"))
        return read_progress(folder)


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Read one file of a checkpoint: "model", "optimizer", "average" or "random"."""
    path = folder / f"{name}.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise unreadable_file(path, error) from error


def read_progress(folder: Path) -> Progress:
    path = folder / STATE
    try:
        return Progress(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise unreadable_file(path, error) from error


def unreadable_file(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read ({error}): remove {path.parent.name} to resume from an earlier checkpoint")


def load_trainable_weights(model: nn.Module, values: Mapping[str, Tensor], folder: Path) -> None:
    """Load the weights that a checkpoint's "model" or "average" file contains into the trainable weights of a model."""
    load_tensors_into({name: stored_tensor(weight) for name, weight in trainable_parameters(model)}, values, folder)


@torch.no_grad()
def load_tensors_into(targets: Mapping[str, StoredTensor], values: Mapping[str, Tensor], folder: Path) -> None:
    """Copy each value into the target of the same name. Names and shapes must match; `folder` is for error messages."""
    if targets.keys() != values.keys():
        names = sorted(targets.keys() ^ values.keys())
        raise UserError(
            f"{folder} belongs to another model or recipe: {len(names)} tensors differ, for example {names[0]}"
        )
    for name, target in targets.items():
        if values[name].shape != target.shape:
            shapes = f"{tuple(values[name].shape)} in the checkpoint and {tuple(target.shape)} in the model"
            raise UserError(f"{folder} belongs to another model or recipe: {name} has shape {shapes}")
        overwrite_tensor(target, values[name])


def random_states(accelerator: Accelerator) -> dict[str, Tensor]:
    """Return the random states of all ranks. Only dropout uses them; everything else has its own generator."""
    own = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    gathered: list[Any] = gather_object([own])
    return {f"{rank}.{kind}": state for rank, states in enumerate(gathered) for kind, state in states.items()}


def restore_random_states(accelerator: Accelerator, states: Mapping[str, Tensor]) -> None:
    """Restore this rank's random states, if the checkpoint has any for its number."""
    rank = accelerator.process_index
    if f"{rank}.cpu" in states:
        torch.set_rng_state(states[f"{rank}.cpu"])
    if accelerator.device.type == "cuda" and f"{rank}.cuda" in states:
        torch.cuda.set_rng_state(states[f"{rank}.cuda"], accelerator.device)
