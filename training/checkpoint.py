"""Checkpoints of a run, each written atomically: an interrupted write leaves the previous checkpoints intact.

A checkpoint is a folder `step-00001000` with safetensors files and a state.json, which contains their checksums. It is
written under a temporary name, flushed to disk and renamed. Tensors are stored unsharded and by name, so a run can be
resumed with any number of ranks. Only the main process reads and writes files, so no shared folder is needed.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rocket_hf.errors import UserError
from rocket_hf.files import file_digest, sync

from .distributed.agreement import on_main_process, shared_errors
from .distributed.placement import Optimizer, optimizer_state, prepare_optimizer_for_loading
from .distributed.tensor_storage import StoredTensor, gather_tensor, overwrite_tensor, stored_tensor
from .optimization import MovingAverage, trainable_parameters

NAME = "step-{:08d}"
NAME_PATTERN = re.compile(r"step-(\d{8})")
TEMPORARY_PREFIX = ".partial-"
STATE = "state.json"
CHECKSUMS, OWN_CHECKSUM = "files", "checksum"  # keys of state.json, in addition to the progress


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
        with shared_errors():
            if accelerator.is_main_process:
                try:
                    self.write(progress, files)
                except (OSError, SafetensorError) as error:
                    raise self.failed_write(progress.step, str(error)) from error
        return self.path(progress.step)

    def failed_write(self, step: int, reason: str) -> UserError:
        steps = self.steps()
        previous = f"the checkpoint of step {steps[-1]} is intact" if steps else "there is no earlier checkpoint"
        return UserError(f"the checkpoint of step {step} could not be written to {self.folder}: {reason}; {previous}")

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
            checksums = {path.name: file_digest(path) for path in sorted(temporary.iterdir())}
            (temporary / STATE).write_text(format_state(progress, checksums))
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
        """Restore weights, optimizer, average and random states from the checkpoint of a step.

        The main process reads them and sends them to the other ranks. All ranks must call this; user errors of the main
        process are raised in all of them.
        """
        folder = self.path(step)
        progress = on_main_process(accelerator, lambda: read_progress(folder))
        load_shared_file(accelerator, trainable_weights(model), folder, "model")
        prepare_optimizer_for_loading(optimizer)
        load_shared_file(accelerator, optimizer_state(model, optimizer), folder, "optimizer")
        if average is not None:
            load_shared_file(accelerator, average.stored_tensors(model), folder, "average")
        restore_random_states(accelerator, on_main_process(accelerator, lambda: read_tensors(folder, "random")))
        return progress


def load_shared_file(accelerator: Accelerator, targets: Mapping[str, StoredTensor], folder: Path, name: str) -> None:
    """Read one file of a checkpoint in the main process, and copy its tensors into the targets of all ranks."""
    values: dict[str, Tensor] = {}
    with shared_errors():
        if accelerator.is_main_process:
            values = read_tensors(folder, name)
            require_same_tensors(targets, values, folder)
    overwrite_tensors(targets, send_tensors(accelerator, values))


def send_tensors(accelerator: Accelerator, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the main process by name, in all ranks, one after another to limit the memory."""
    described = {name: (value.shape, value.dtype) for name, value in values.items()}
    for name, (shape, dtype) in on_main_process(accelerator, lambda: described).items():
        value = values[name] if accelerator.is_main_process else torch.empty(shape, dtype=dtype)
        if accelerator.num_processes > 1:
            value = broadcast(value.to(accelerator.device).contiguous())
        yield name, value


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Read one file of a checkpoint: "model", "optimizer", "average" or "random"."""
    path = folder / f"{name}.safetensors"
    _, checksums = read_state(folder)
    try:
        if checksums and file_digest(path) != checksums.get(path.name):
            raise damaged_file(path, f"its checksum differs from the one in {STATE}")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise damaged_file(path, str(error)) from error


def read_progress(folder: Path) -> Progress:
    return read_state(folder)[0]


def read_state(folder: Path) -> tuple[Progress, dict[str, str]]:
    """Return the progress and the checksum of each file. Checkpoints of version 0.1.0 have no checksums."""
    path = folder / STATE
    try:
        values = json.loads(path.read_text())
        checksums, own_checksum = values.pop(CHECKSUMS, {}), values.pop(OWN_CHECKSUM, None)
        progress = Progress(**values)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise damaged_file(path, str(error)) from error
    if (checksums or own_checksum) and own_checksum != state_checksum(values, checksums):
        raise damaged_file(path, "its values differ from the checksum in it")
    return progress, checksums


def format_state(progress: Progress, checksums: dict[str, str]) -> str:
    values = asdict(progress)
    return json.dumps(values | {CHECKSUMS: checksums, OWN_CHECKSUM: state_checksum(values, checksums)})


def state_checksum(values: dict[str, Any], checksums: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps([values, checksums], sort_keys=True).encode()).hexdigest()


def damaged_file(path: Path, reason: str) -> UserError:
    folder = path.parent
    match = NAME_PATTERN.fullmatch(folder.name)
    earlier = [step for step in Checkpoints(folder.parent, keep=1).steps() if match and step < int(match[1])]
    fix = (
        f"remove the folder {folder} to resume from the checkpoint before it, of step {earlier[-1]}"
        if earlier
        else "there is no earlier checkpoint, so start the run again with another --out"
    )
    return UserError(f"the checkpoint file {path} cannot be read, {reason}: {fix}")


def trainable_weights(model: nn.Module) -> dict[str, StoredTensor]:
    return {name: stored_tensor(weight) for name, weight in trainable_parameters(model)}


def load_trainable_weights(model: nn.Module, values: Mapping[str, Tensor], folder: Path) -> None:
    """Load the weights that a checkpoint's "model" or "average" file contains into the trainable weights of a model."""
    load_tensors_into(trainable_weights(model), values, folder)


def load_tensors_into(targets: Mapping[str, StoredTensor], values: Mapping[str, Tensor], folder: Path) -> None:
    """Copy each value into the target of the same name. Names and shapes must match; `folder` is for error messages."""
    require_same_tensors(targets, values, folder)
    overwrite_tensors(targets, values.items())


def require_same_tensors(targets: Mapping[str, StoredTensor], values: Mapping[str, Tensor], folder: Path) -> None:
    """Raise a UserError if names or shapes differ; `folder` is that of the checkpoint."""
    if targets.keys() != values.keys():
        names = sorted(targets.keys() ^ values.keys())
        raise UserError(
            f"{folder} belongs to another model or recipe: {len(names)} tensors differ, for example {names[0]}"
        )
    for name, target in targets.items():
        if values[name].shape != target.shape:
            shapes = f"{tuple(values[name].shape)} in the checkpoint and {tuple(target.shape)} in the model"
            raise UserError(f"{folder} belongs to another model or recipe: {name} has shape {shapes}")


@torch.no_grad()
def overwrite_tensors(targets: Mapping[str, StoredTensor], values: Iterable[tuple[str, Tensor]]) -> None:
    for name, value in values:
        overwrite_tensor(targets[name], value)


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
