"""Construction of a run from its recipe: task, model, optimizer, data, checkpoints and journal."""

from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from rocket_hf.errors import UserError

from .checkpoint import Checkpoints, Progress
from .distributed.agreement import RankBatches, on_main_process, shared_errors
from .distributed.placement import place
from .input_fingerprints import INPUTS, Fingerprints, check_same_inputs
from .journal import StepTimer
from .optimization import MovingAverage
from .recipe import BaseRecipe, Rocket2Recipe, VLARecipe
from .rocket2.task import create_rocket2_task
from .run import (
    CHECKPOINTS,
    Run,
    StartedRun,
    TrainState,
    check_same_recipe,
    create_journal,
    create_run_folder,
    find_started_run,
)
from .task import TrainingTask
from .vla.gradient_projection import GradientProjection
from .vla.layer_pairs import resolve_layer_pairs
from .vla.robot import complete_robot
from .vla.task import create_vla_task


def create_run(recipe: BaseRecipe, out: Path, resume: bool, accelerator: Accelerator) -> Run:
    """Create a run, or restore it from its last checkpoint. The main process decides, and alone reads the folder."""
    with shared_errors():
        started = on_main_process(accelerator, lambda: find_started_run(out, resume))
        if isinstance(recipe, VLARecipe):
            recipe = resolve_layer_pairs(read_robot(recipe, started, accelerator), accelerator)
        if started is not None:
            check_same_recipe(started, recipe, out)
        task = create_task(recipe, accelerator)
        fingerprints = on_main_process(accelerator, lambda: fingerprint_inputs(task, out, resume))
        task.make_trainable()
    state = create_train_state(task, recipe, accelerator)
    with shared_errors():
        return start_run(state, started, fingerprints, out)


def start_run(state: TrainState, started: StartedRun | None, fingerprints: Fingerprints, out: Path) -> Run:
    """Start the data loader, restore the last checkpoint of a resumed run, and create the folder and the journal."""
    recipe, task, accelerator = state.recipe, state.task, state.accelerator
    resume_step = None if started is None else started.step
    checkpoints = Checkpoints(out / CHECKPOINTS, recipe.run.keep)
    batches = task.batches(resume_step or 0)
    first_batches: list[list[Any]] = list(islice(batches, 1))  # Errors in the data appear before the folder is created.
    torch.manual_seed(recipe.run.seed + accelerator.process_index)  # Each rank has its own dropout masks.
    progress = Progress()
    if resume_step is not None:  # after the loader has started, because it draws from the restored random state
        progress = checkpoints.load(resume_step, accelerator, state.policy, state.optimizer, state.average)
    create_run_folder(recipe, fingerprints, out, accelerator)
    return Run(
        **vars(state),
        out=out,
        batches=RankBatches(chain(first_batches, batches), accelerator),
        checkpoints=checkpoints,
        journal=create_journal(out, accelerator, progress, task.notes, recipe),
        progress=progress,
    )


def fingerprint_inputs(task: TrainingTask, out: Path, resume: bool) -> Fingerprints:
    """Return the fingerprints of the inputs; raise a UserError if those of a resumed run have changed."""
    fingerprints = task.input_fingerprints()
    if resume and not check_same_inputs(fingerprints, out):
        task.notes.append(f"the run in {out} has no {INPUTS}, so changes of its inputs until now cannot be detected")
    return fingerprints


def read_robot(recipe: VLARecipe, started: StartedRun | None, accelerator: Accelerator) -> VLARecipe:
    """Return the recipe with the robot of its datasets, or of the resumed run; print it beside the policy's robot."""
    previous = started.recipe if started is not None and isinstance(started.recipe, VLARecipe) else None
    recipe, comparison = complete_robot(recipe, accelerator, previous)
    accelerator.print("\n".join(comparison))
    return recipe


def create_task(recipe: BaseRecipe, accelerator: Accelerator) -> TrainingTask:
    if isinstance(recipe, Rocket2Recipe):
        return create_rocket2_task(recipe, accelerator)
    assert isinstance(recipe, VLARecipe)
    if recipe.run.base_dtype == "bfloat16" and accelerator.mixed_precision != "bf16":
        raise UserError("run.base_dtype bfloat16 needs mixed precision: accelerate launch --mixed_precision bf16")
    return create_vla_task(recipe, accelerator)


def create_train_state(task: TrainingTask, recipe: BaseRecipe, accelerator: Accelerator) -> TrainState:
    """Place the model of a task on its devices and create the optimizer of the weights that the task made trainable."""
    policy = task.policy
    model, optimizer = place(accelerator, policy.train(), recipe.optimizer, task.part_of)
    projection = None
    if isinstance(recipe, VLARecipe) and recipe.optimizer.conflicts == "project":
        projection = GradientProjection(policy, accelerator)
    return TrainState(
        recipe=recipe,
        accelerator=accelerator,
        task=task,
        model=model if projection is None else policy,  # The projection averages gradients over the ranks itself.
        optimizer=optimizer,
        average=MovingAverage(policy, recipe.run.ema) if recipe.run.ema is not None else None,
        timer=StepTimer(accelerator.device),
        gradient_projection=projection,
    )
