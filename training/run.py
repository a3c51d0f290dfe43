"""A run: what it trains, its model and optimizer, its folder and what it writes there. `opening.py` puts one together;
the loop is train.py's."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rocket_hf.errors import UserError

from .checkpoint import Checkpoints, Progress
from .distributed.deepspeed_zero import EngineOptimizer
from .journal import Journal, Times
from .optimization import MovingAverage
from .recipe import Recipe
from .recipe_files import changed, differences, read_recipe, write_recipe
from .vla.gradient_projection import Projection

RECIPE, JOURNAL, CHECKPOINTS, POLICY = "recipe.yaml", "journal.jsonl", "checkpoints", "policy"
UNFINISHED = f"{RECIPE}.tmp"  # all that a kill can leave of a run that did not begin

# What may change when a run is resumed; all else would make it another run.
MAY_CHANGE = (
    "run.steps", "run.log_every", "run.save_every", "run.keep", "run.trackers", "run.device_batch_size", "run.compile",
    "run.gradient_checkpointing", "run.most_skipped", "data.workers", "data.prefetch",
    "analysis.gradient_agreement_every", "analysis.parameters",
)  # fmt: skip
Losses = dict[str, Tensor]


class TrainingTask(ABC):
    """What a run trains, apart from the loop: what a step reads, which losses that has, what is judged and kept."""

    policy: Any  # one of transformers' models
    notes: list[str]  # what the user should know before it starts
    validates: bool  # whether anything is held out

    @staticmethod
    @abstractmethod
    def part_of(name: str) -> str:
        """Of the policy, the part to which a weight belongs; "heads" and "projector" may have rates of their own."""

    @abstractmethod
    def make_trainable(self) -> None:
        """Decides which weights of the policy train, before it is put on its devices."""

    @abstractmethod
    def batches(self, first_step: int) -> Iterator[list[Any]]:
        """What this rank reads in each step from that one on: a batch for each pass."""

    @abstractmethod
    def measured(self, run: "Run", batches: list[Any]) -> dict[str, Any]:
        """What the journal tells of the coming step besides its losses."""

    @abstractmethod
    def losses(self, run: "TrainState", raw: Any, step: int, carried: Any) -> tuple[Losses, Tensor, Any]:
        """The named losses of one pass, their weighted sum, and what the next pass of the same step goes on from."""

    @abstractmethod
    def validate(self, run: "Run") -> dict[str, float]:
        """What held-out data say of the policy, nothing if there are none. The lowest "error" is the best."""

    @abstractmethod
    def finished(self) -> Any:
        """The policy as it is to be used. All ranks call it."""

    @abstractmethod
    def write(self, policy: Any, folder: Path) -> None:
        """A finished policy with all that belongs beside it, whole or not at all."""

    @abstractmethod
    def tell_error(self, error: float) -> str:
        """What validation found, for people."""


@dataclass
class TrainState:
    """What one training step needs."""

    recipe: Recipe
    accelerator: Accelerator
    system: TrainingTask
    model: nn.Module  # as it is called: the policy, or DDP or DeepSpeed's engine around it
    optimizer: torch.optim.Optimizer | EngineOptimizer
    average: MovingAverage | None
    times: Times
    projection: Projection | None

    @property
    def policy(self) -> Any:
        return self.system.policy


@dataclass
class Run(TrainState):
    out: Path
    batches: Iterator[list[Any]]  # of each step
    checkpoints: Checkpoints
    journal: Journal
    progress: Progress = field(default_factory=Progress)
    recent: list[list[Any]] = field(default_factory=list)  # of the steps whose losses nobody has looked at yet


def step_to_resume(recipe: Recipe, out: Path, resume: bool) -> int | None:
    """Of the last checkpoint of the run that is to go on. A run that begins needs an empty folder."""
    written = out / RECIPE
    steps = Checkpoints(out / CHECKPOINTS, recipe.run.keep).steps()
    if resume and not written.is_file():
        raise UserError(f"there is no run in {out} to resume: leave --resume out to begin one")
    if written.is_file() and resume:
        others = [key for key in differences(read_recipe(str(written)), recipe) if key not in MAY_CHANGE]
        if others:
            raise UserError(f"{', '.join(others)} differ from the run in {out}: give them as {written} has them")
    elif out.exists() and any(path.name != UNFINISHED for path in out.iterdir()):
        raise UserError(f"{out} is not empty: pass --resume to go on with the run in it, or another --out")
    return steps[-1] if resume and steps else None


def claim_folder(recipe: Recipe, out: Path, accelerator: Accelerator) -> None:
    """Once all that could be wrong with the run has been found to be right."""
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        write_recipe(recipe, out / UNFINISHED)
        (out / UNFINISHED).replace(out / RECIPE)
    if recipe.run.trackers:
        accelerator.init_trackers("rocket_hf", config=tracked_settings(recipe))


def tracked_settings(recipe: Recipe) -> dict[str, int | float | str]:
    """What trackers take: numbers and texts."""
    return {key: value if isinstance(value, int | float | str) else str(value) for key, value in changed(recipe)}


def open_journal(out: Path, accelerator: Accelerator, progress: Progress, notes: list[str]) -> Journal:
    """Which begins with what the user should know, such as a license that forbids commercial use."""

    def mean_over_ranks(numbers: Tensor) -> Tensor:
        return accelerator.reduce(numbers, "mean")

    def track(values: dict[str, Any], step: int) -> None:
        accelerator.log(values, step=step)

    journal = Journal(out / JOURNAL if accelerator.is_main_process else None, track, mean_over_ranks)
    journal.forget_after(progress.step)
    for note in filter(None, notes):
        accelerator.print(f"note: {note}")
        journal.write([{"step": progress.step, "note": note}])
    return journal
