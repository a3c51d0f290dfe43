"""A run put together from its recipe: model, optimizer, data, targets, checkpoints, journal. The loop is train.py's."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.teachers.load import DTYPES

from .checkpoint import Checkpoints, Progress
from .conflicts import Projection, check_conflicts
from .data.batches import RobotBatch
from .data.loader import RobotLoader, make_loader
from .journal import Journal, Times
from .optimization import MovingAverage
from .placement import place
from .preparation import Preparation
from .quantize import quantize_frozen
from .recipe import AugmentationConfig, Recipe
from .recipe_checks import passes
from .recipe_files import changed, differences, read_recipe, write_recipe
from .shared_weights import check_agreement
from .sources import Sources, load_policy, open_sources
from .targets import TargetSource
from .trainable import make_trainable
from .zero import EngineOptimizer

RECIPE, JOURNAL, CHECKPOINTS, POLICY = "recipe.yaml", "journal.jsonl", "checkpoints", "policy"
UNFINISHED = f"{RECIPE}.tmp"  # all that a kill can leave of a run that did not begin

# What may change when a run is resumed; all else would make it another run.
MAY_CHANGE = (
    "run.steps", "run.log_every", "run.save_every", "run.keep", "run.trackers", "run.device_batch_size", "run.compile",
    "run.gradient_checkpointing", "run.most_skipped", "data.workers", "data.prefetch",
    "analysis.gradient_agreement_every", "analysis.parameters",
)  # fmt: skip


@dataclass
class Learner:
    """What one training step needs."""

    recipe: Recipe
    accelerator: Accelerator
    model: nn.Module  # as it is called: the policy, or DDP or DeepSpeed's engine around it
    policy: RocketForActionPrediction
    optimizer: torch.optim.Optimizer | EngineOptimizer
    average: MovingAverage | None
    preparation: Preparation
    times: Times
    projection: Projection | None


@dataclass
class Run(Learner):
    out: Path
    processor: RocketProcessor
    batches: Iterator[RobotBatch]
    passes: int  # per step
    validation: RobotLoader | None
    checkpoints: Checkpoints
    journal: Journal
    progress: Progress = field(default_factory=Progress)
    recent: list[RobotBatch] = field(default_factory=list)  # those whose losses nobody has looked at yet

    def next_batches(self) -> list[RobotBatch]:
        return list(islice(self.batches, self.passes))


def open_run(recipe: Recipe, out: Path, resume: bool, accelerator: Accelerator) -> Run:
    last = step_to_resume(recipe, out, resume)
    check_precision(recipe, accelerator)
    sources = shared_sources(recipe, accelerator)
    each, count = passes(recipe, accelerator.num_processes)
    policy = load_policy(sources.folder, sources.config.alignment, recipe)
    learner = make_learner(policy, sources.processor, sources.targets, recipe, accelerator)
    checkpoints = Checkpoints(out / CHECKPOINTS, recipe.run.keep)
    batches = iter(training_loader(sources, recipe, accelerator, each, last or 0))
    first = list(islice(batches, count))
    torch.manual_seed(recipe.run.seed + accelerator.process_index)  # each rank drops out units of its own
    progress = Progress()
    if last is not None:  # after the loader has begun: it draws from the random state that is restored here
        progress = checkpoints.load(last, accelerator, learner.policy, learner.optimizer, learner.average)
    claim_folder(recipe, out, accelerator)
    return Run(
        **vars(learner),
        out=out,
        processor=sources.processor,
        batches=chain(first, batches),
        passes=count,
        validation=validation_loader(sources, recipe, accelerator, each),
        checkpoints=checkpoints,
        journal=open_journal(out, accelerator, progress, sources.notes),
        progress=progress,
    )


def make_learner(
    policy: RocketForActionPrediction,
    processor: RocketProcessor,
    targets: TargetSource | None,
    recipe: Recipe,
    accelerator: Accelerator,
) -> Learner:
    make_trainable(policy, recipe)
    if recipe.run.quantize:
        quantize_frozen(policy, DTYPES[recipe.run.base_dtype])
    check_agreement(recipe, policy)
    check_conflicts(recipe)
    arrange(policy, recipe)
    model, optimizer = place(accelerator, policy.train(), recipe.optimizer)
    projection = Projection(policy, accelerator) if recipe.optimizer.conflicts == "project" else None
    return Learner(
        recipe=recipe,
        accelerator=accelerator,
        model=model if projection is None else policy,  # which averages over ranks itself
        policy=policy,
        optimizer=optimizer,
        average=MovingAverage(policy, recipe.run.ema) if recipe.run.ema is not None else None,
        preparation=Preparation(policy.config, processor, targets, accelerator.device),
        times=Times(accelerator.device),
        projection=projection,
    )


def step_to_resume(recipe: Recipe, out: Path, resume: bool) -> int | None:
    """Of the last checkpoint of the run that is to go on. A run that begins needs an empty folder."""
    written = out / RECIPE
    steps = Checkpoints(out / CHECKPOINTS, recipe.run.keep).steps()
    if resume and not written.is_file():
        raise ValueError(f"there is no run in {out} to resume: leave --resume out to begin one")
    if written.is_file() and resume:
        others = [key for key in differences(read_recipe(str(written)), recipe) if key not in MAY_CHANGE]
        if others:
            raise ValueError(f"{', '.join(others)} differ from the run in {out}: give them as {written} has them")
    elif out.exists() and any(path.name != UNFINISHED for path in out.iterdir()):
        raise ValueError(f"{out} is not empty: pass --resume to go on with the run in it, or another --out")
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


def check_precision(recipe: Recipe, accelerator: Accelerator) -> None:
    if recipe.run.base_dtype == "bfloat16" and accelerator.mixed_precision != "bf16":
        raise ValueError("run.base_dtype bfloat16 needs mixed precision: accelerate launch --mixed_precision bf16")


def shared_sources(recipe: Recipe, accelerator: Accelerator) -> Sources:
    """The main process first, so that what has to be fetched or indexed is done once."""
    device = accelerator.device if accelerator.device.type != "cpu" else torch.device("cpu")  # without a number
    with accelerator.main_process_first():
        return open_sources(recipe, device)


def arrange(policy: RocketForActionPrediction, recipe: Recipe) -> None:
    if recipe.run.gradient_checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    if recipe.run.compile:
        for layer in policy.policy.get_submodule("layers").children():
            layer.compile()


def training_loader(sources: Sources, recipe: Recipe, accelerator: Accelerator, each: int, step: int) -> RobotLoader:
    size = recipe.run.batch_size
    return make_loader(
        sources.datasets,
        sources.order,
        sources.processor,
        sources.config,
        recipe.data,
        recipe.run.seed,
        each,
        accelerator.process_index,
        accelerator.num_processes,
        step * size,
        recipe.run.steps * size,
        sources.caches,
    )


def validation_loader(sources: Sources, recipe: Recipe, accelerator: Accelerator, each: int) -> RobotLoader | None:
    """Held-out frames as they are, as many on each rank; in this process, since it runs now and then."""
    ranks = accelerator.num_processes
    if sources.held_out is None or len(sources.held_out) < ranks:
        return None
    each = min(each, len(sources.held_out) // ranks)
    total = len(sources.held_out) // (each * ranks) * each * ranks
    plain = replace(recipe.data, augmentation=AugmentationConfig(), workers=0)
    return make_loader(
        sources.datasets,
        sources.held_out,
        sources.processor,
        sources.config,
        plain,
        recipe.run.seed,
        each,
        accelerator.process_index,
        ranks,
        0,
        total,
    )


def open_journal(out: Path, accelerator: Accelerator, progress: Progress, notes: list[str]) -> Journal:
    """Which begins with what the user should know, such as a licence that forbids commercial use."""

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
