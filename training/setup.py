"""A run put together from its recipe: what it trains, optimizer, data, checkpoints, journal. The loop is train.py's."""

from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from rocket_hf.errors import UserError

from .checkpoint import Checkpoints, Progress
from .distributed.placement import place
from .journal import Times
from .optimization import MovingAverage
from .recipe import Recipe
from .rocket2.task import create_rocket2_task
from .run import CHECKPOINTS, Run, TrainingTask, TrainState, claim_folder, open_journal, step_to_resume
from .vla.gradient_projection import Projection
from .vla.task import create_vla_task


def create_run(recipe: Recipe, out: Path, resume: bool, accelerator: Accelerator) -> Run:
    last = step_to_resume(recipe, out, resume)
    check_precision(recipe, accelerator)
    system = create_vla_task(recipe, accelerator) if recipe.goals is None else create_rocket2_task(recipe, accelerator)
    learner = create_train_state(system, recipe, accelerator)
    checkpoints = Checkpoints(out / CHECKPOINTS, recipe.run.keep)
    batches = system.batches(last or 0)
    first: list[list[Any]] = list(islice(batches, 1))
    torch.manual_seed(recipe.run.seed + accelerator.process_index)  # each rank drops out units of its own
    progress = Progress()
    if last is not None:  # after the loader has begun: it draws from the random state that is restored here
        progress = checkpoints.load(last, accelerator, learner.policy, learner.optimizer, learner.average)
    claim_folder(recipe, out, accelerator)
    return Run(
        **vars(learner),
        out=out,
        batches=chain(first, batches),
        checkpoints=checkpoints,
        journal=open_journal(out, accelerator, progress, system.notes),
        progress=progress,
    )


def create_train_state(system: TrainingTask, recipe: Recipe, accelerator: Accelerator) -> TrainState:
    system.make_trainable()
    policy = system.policy
    model, optimizer = place(accelerator, policy.train(), recipe.optimizer, system.part_of)
    projection = Projection(policy, accelerator) if recipe.optimizer.conflicts == "project" else None
    return TrainState(
        recipe=recipe,
        accelerator=accelerator,
        system=system,
        model=model if projection is None else policy,  # which averages over ranks itself
        optimizer=optimizer,
        average=MovingAverage(policy, recipe.run.ema) if recipe.run.ema is not None else None,
        times=Times(accelerator.device),
        projection=projection,
    )


def check_precision(recipe: Recipe, accelerator: Accelerator) -> None:
    if recipe.run.base_dtype == "bfloat16" and accelerator.mixed_precision != "bf16":
        raise UserError("run.base_dtype bfloat16 needs mixed precision: accelerate launch --mixed_precision bf16")
