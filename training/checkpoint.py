"""Checkpoints of a run: whole or not there, whatever happens while one is written.

Each is a folder `step-00001000` of safetensors and one state.json. It is written under another name, brought to the
disk and renamed. Tensors are those of the whole model, by name, so that a run goes on with any number of ranks.
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
from torch.distributed.tensor import DTensor, distribute_tensor

from rocket_hf.errors import UserError
from rocket_hf.files import sync

from .distributed.deepspeed_zero import EngineOptimizer, Place, place_of
from .distributed.placement import whole
from .optimization import MovingAverage, trained

NAME = "step-{:08d}"
NAMED = re.compile(r"step-(\d{8})")
PARTIAL = ".partial-"
STATE = "state.json"
OPTIMIZER_STATE = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class Progress:
    """How far a run is. Its next sample is number `step x batch size` of its order: nothing else is kept of that."""

    step: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    best_step: int | None = None
    best_error: float | None = None


class Checkpoints:
    """The checkpoints in one folder."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        found = (NAMED.fullmatch(path.name) for path in self.folder.iterdir() if (path / STATE).is_file())
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        return self.folder / NAME.format(step)

    def clean(self, best: int | None) -> None:
        """Removes all but the last ones and the best, and what a kill left behind."""
        kept = {*self.steps()[-self.keep :], best}
        for path in self.folder.iterdir():
            match = NAMED.fullmatch(path.name)
            if path.name.startswith(PARTIAL) or (match and int(match[1]) not in kept):
                shutil.rmtree(path)

    def save(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | EngineOptimizer,
        average: MovingAverage | None,
        progress: Progress,
    ) -> Path:
        """All ranks call it, the main one writes. Every rank fails if that one does."""
        files = {
            "model": {name: whole(parameter) for name, parameter in trained(model)},
            "optimizer": {name: whole(value) for name, value in optimizer_tensors(model, optimizer).items()},
            "average": {name: whole(place) for name, place in average.places(model).items()} if average else {},
            "random": random_states(accelerator),
        }
        failure = [""]
        if accelerator.is_main_process:
            try:
                self.write(progress, files)
            except (OSError, SafetensorError) as error:
                failure = [str(error)]
        if reason := "".join(gather_object(failure)):
            last = f"the checkpoint of step {self.steps()[-1]} is whole" if self.steps() else "there is no earlier one"
            raise UserError(
                f"the checkpoint of step {progress.step} could not be written to {self.folder}: {reason}; {last}"
            )
        return self.path(progress.step)

    def write(self, progress: Progress, files: Mapping[str, dict[str, Tensor]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{PARTIAL}{NAME.format(progress.step)}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            for name, tensors in files.items():
                if tensors:
                    save_file(
                        {key: tensor.contiguous() for key, tensor in tensors.items()}, partial / f"{name}.safetensors"
                    )
            (partial / STATE).write_text(json.dumps(asdict(progress)))
            for path in [*partial.iterdir(), partial]:
                sync(path)
            target = self.path(progress.step)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            sync(self.folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self.clean(progress.best_step)

    def load(
        self,
        step: int,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | EngineOptimizer,
        average: MovingAverage | None,
    ) -> Progress:
        folder = self.path(step)
        put({name: place_of(weight) for name, weight in trained(model)}, read(folder, "model"), folder)
        if isinstance(optimizer, EngineOptimizer):
            optimizer.adopt_weights()
        else:
            prepare_state(optimizer)
        put(optimizer_tensors(model, optimizer), read(folder, "optimizer"), folder)
        if average is not None:
            put(average.places(model), read(folder, "average"), folder)
        restore_random_state(accelerator, read(folder, "random"))
        return read_progress(folder)


def read(folder: Path, name: str) -> dict[str, Tensor]:
    path = folder / f"{name}.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from error


def read_progress(folder: Path) -> Progress:
    path = folder / STATE
    try:
        return Progress(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be read ({error}): remove {path.parent.name} to resume from an earlier one")


@torch.no_grad()
def put(places: Mapping[str, Place], values: Mapping[str, Tensor], folder: Path) -> None:
    """Copies each value to the place of its name, spread over ranks as that place is."""
    if places.keys() != values.keys():
        names = sorted(places.keys() ^ values.keys())
        raise UserError(f"{folder} is of another model or recipe: {len(names)} tensors differ, among them {names[0]}")
    for name, place in places.items():
        if values[name].shape != place.shape:
            shapes = f"{tuple(values[name].shape)} there and {tuple(place.shape)} here"
            raise UserError(f"{folder} is of another model or recipe: {name} is {shapes}")
        value = values[name]
        if isinstance(place, DTensor):
            value = distribute_tensor(value.to(place.device), place.device_mesh, place.placements)
        place.copy_(value)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer | EngineOptimizer) -> Mapping[str, Place]:
    """Adam's moments and its count of steps, by the name of the weight."""
    if isinstance(optimizer, EngineOptimizer):
        return optimizer.state(trained(model))
    return {
        f"{name}.{key}": optimizer.state[parameter][key]
        for name, parameter in trained(model)
        if parameter in optimizer.state
        for key in OPTIMIZER_STATE
    }


def prepare_state(optimizer: torch.optim.Optimizer) -> None:
    """Makes Adam's moments, which are there only after a first step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def random_states(accelerator: Accelerator) -> dict[str, Tensor]:
    """Of each rank; only dropout draws from them, all else has a generator of its own."""
    mine = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        mine["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    gathered: list[Any] = gather_object([mine])
    return {f"{rank}.{kind}": state for rank, states in enumerate(gathered) for kind, state in states.items()}


def restore_random_state(accelerator: Accelerator, states: Mapping[str, Tensor]) -> None:
    rank = accelerator.process_index
    if f"{rank}.cpu" in states:
        torch.set_rng_state(states[f"{rank}.cpu"])
    if accelerator.device.type == "cuda" and f"{rank}.cuda" in states:
        torch.cuda.set_rng_state(states[f"{rank}.cuda"], accelerator.device)
