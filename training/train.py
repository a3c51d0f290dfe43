"""Train a policy on LeRobot datasets, with or without alignment to a 3D vision model. The recipe holds all settings.

    accelerate launch training/train.py --recipe rocket --policy you/base --dataset you/robot-data

`train` is the training loop and `training_step` one step of it. The losses are computed by the model, in
modeling/modeling_rocket.py or modeling/modeling_rocket2.py. Everything specific to one kind of policy is in its
TrainingTask: vla/task.py or rocket2/task.py.
"""

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from torch import Tensor
from tqdm import tqdm
from transformers.utils import logging

from rocket_hf.errors import USER_ERRORS, UserError, format_error
from rocket_hf.training.arguments import add_training_arguments
from rocket_hf.training.distributed import placement
from rocket_hf.training.distributed.agreement import SharedError, disconnect, exchange, shared_errors
from rocket_hf.training.dry_run import describe_run
from rocket_hf.training.export import export, save_batches, summary
from rocket_hf.training.optimization import learning_rate_factor, set_learning_rates
from rocket_hf.training.recipe import BaseRecipe, BaseRunConfig, VLARecipe
from rocket_hf.training.recipe_checks import check_recipe
from rocket_hf.training.recipe_files import different_keys, read_recipe
from rocket_hf.training.run import Run, TrainState, locked_run_folder
from rocket_hf.training.setup import create_run
from rocket_hf.training.task import Losses
from rocket_hf.training.validation import validate


def train(run: Run) -> None:
    """Train until the last step of the recipe. A SIGTERM saves a checkpoint and raises KeyboardInterrupt."""
    recipe, progress, steps = run.recipe, run.progress, run.recipe.run.steps
    stop_signal = StopSignal(run.accelerator)
    # disable=None hides the bar if the output is not a terminal.
    bar = tqdm(
        total=steps, initial=progress.step, desc=recipe.name, disable=not run.accelerator.is_main_process or None
    )
    last_flush = time.perf_counter()
    while progress.step < steps:
        rates = set_learning_rates(
            run.optimizer.param_groups, learning_rate_factor(recipe.schedule, progress.step, steps)
        )
        with run.timer("data"):
            batches = next(run.batches)
        metrics = run.task.extra_metrics(batches, progress.step, run.timer)

        losses, gradient_norm, skipped = training_step(run, batches, progress.step)

        progress.step += 1
        bar.update()
        run.unflushed_batches.append(batches)
        metrics |= losses | rates | run.timer.pop_intervals()
        run.journal.add(progress.step, gradient_norm=gradient_norm, skipped=skipped, **metrics)
        due = due_actions(progress.step, recipe.run)
        if not due and not stop_signal.received_alone():
            continue
        with shared_errors():
            run.batches.raise_deferred_error()
        last_flush = flush_metrics(run, last_flush, bar)
        stop = stop_signal.received_by_any_rank()
        is_best = "validate" in due and validate(run)
        if "save" in due or is_best or stop:
            run.checkpoints.save(run.accelerator, run.policy, run.optimizer, run.average, progress)
        if stop:
            disconnect(run.accelerator)
            raise KeyboardInterrupt(f"stopped by a signal after step {progress.step}: continue with --resume")
    bar.close()


# ----------------------------------------------------------------------------------------------------------------------
# single training step


def training_step(run: TrainState, batches: list[Any], step: int) -> tuple[Losses, Tensor, Tensor]:
    """Run forward and backward passes over the batches of a step, then update the weights.

    Return the mean losses by name, the gradient norm, and 1.0 if the update was skipped because it was not finite.
    """
    logged: list[Losses] = []
    output = None
    for number, batch in enumerate(batches, start=1):
        inputs = run.task.model_inputs(batch, step, output, run.timer)
        with placement.gradients_averaged(run.model, is_last=number == len(batches)), run.timer("student"):
            with run.accelerator.autocast():
                output = run.model(**inputs)
            weights = run.task.loss_weights(output.losses, step)
            weighted = {name: weights[name] * loss for name, loss in output.losses.items()}
            loss = torch.stack(list(weighted.values())).sum()
            if run.gradient_projection is None:
                run.accelerator.backward(loss / len(batches))
            else:
                run.gradient_projection.backward(weighted, len(batches))
        losses = run.task.losses_to_log(output.losses, step) | {"loss": loss}
        logged.append({name: value.detach() for name, value in losses.items()})
    with run.timer("optimizer"):
        if run.gradient_projection is not None:
            run.gradient_projection.write_gradients()
        gradient_norm, skipped = placement.step(run.optimizer, run.recipe.optimizer.clip_norm)  # clip, update, zero
        if run.average is not None:
            run.average.update(run.policy)
    mean_losses = {name: torch.stack([losses[name] for losses in logged]).mean() for name in logged[0]}
    return mean_losses, gradient_norm, skipped


# ----------------------------------------------------------------------------------------------------------------------


def due_actions(step: int, config: BaseRunConfig) -> set[str]:
    """Return what is due after `step`: "log", "validate", "save". All of them are due after the last step."""
    intervals = {"log": config.log_every, "validate": config.validate_every, "save": config.save_every}
    return {action for action, interval in intervals.items() if step % interval == 0 or step == config.steps}


def flush_metrics(run: Run, last_flush: float, bar: tqdm) -> float:
    """Write the metrics since the last call to the journal; return the time. Raise a UserError if too many consecutive
    steps had a non-finite loss."""
    with shared_errors():
        records = run.journal.flush()
        now = time.perf_counter()
        speed = len(records) * run.recipe.run.batch_size / (now - last_flush) if records else 0.0
        check_skipped_steps(run, records)
        run.unflushed_batches.clear()
        if records:
            memory = {"memory_mib": torch.cuda.max_memory_allocated() / 2**20} if torch.cuda.is_available() else {}
            run.journal.write_metrics(records[-1]["step"], samples_per_second=round(speed, 3), **memory)
            bar.set_postfix(loss=f"{records[-1]['loss']:.3f}", samples_per_s=f"{speed:.1f}", refresh=False)
    return now


def check_skipped_steps(run: Run, records: list[dict[str, Any]]) -> None:
    """Record the samples of skipped steps, of all ranks; raise a UserError after too many consecutive ones."""
    progress, limit = run.progress, run.recipe.run.max_skipped_steps
    for record, batches in zip(records, run.unflushed_batches, strict=True):
        if not record["skipped"]:
            progress.skipped_in_row = 0
            continue
        progress.skipped += 1
        progress.skipped_in_row += 1
        samples = [sample for samples in exchange(sample_ids(batches)) for sample in samples]
        run.journal.write([{"step": record["step"], "skipped_samples": samples}])
        if progress.skipped_in_row >= limit:
            path = save_batches(run, batches)
            raise UserError(
                f"{limit} consecutive steps had a non-finite loss, the last of them step {record['step']}, whose batch "
                f"was saved to {path}: lower optimizer.lr, or set optimizer.clip_norm"
            )


def sample_ids(batches: list[Any]) -> list[dict[str, int]]:
    """Return dataset, episode and frame of every sample."""
    keys = ("dataset", "episode_index", "frame_index")
    rows = [torch.stack([batch[key] for key in keys], dim=1).tolist() for batch in batches]
    return [dict(zip(keys, row, strict=True)) for batch_rows in rows for row in batch_rows]


class StopSignal:
    """Handler of SIGTERM, which clusters send before they stop a job. All ranks stop after the same step."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator, self.is_received = accelerator, False
        signal.signal(signal.SIGTERM, self.handle)

    def handle(self, number: int, frame: Any) -> None:
        self.is_received = True

    def received_alone(self) -> bool:
        """Return whether a single process received it, which does not have to wait for other ranks."""
        return self.is_received and self.accelerator.num_processes == 1

    def received_by_any_rank(self) -> bool:
        flag = torch.tensor(float(self.is_received), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum"))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_training_arguments(parser)
    return parser.parse_args(argv)


def recipe_from_arguments(arguments: argparse.Namespace) -> BaseRecipe:
    names = {"policy": arguments.policy, "teacher.name": arguments.teacher}
    names |= {f"data.datasets.{number}.id": name for number, name in enumerate(arguments.dataset)}
    names |= {f"teacher.caches.{number}": name for number, name in enumerate(arguments.cache)}
    literal_changes = {key: name for key, name in names.items() if name is not None}
    recipe = read_recipe(arguments.recipe, arguments.set, literal_changes)
    check_recipe(recipe)
    return recipe


def same_recipe(recipe: BaseRecipe) -> BaseRecipe:
    """Return the recipe if all ranks have the same. They may have read it from files of different machines."""
    for rank, other in enumerate(exchange(recipe)):
        keys = different_keys(recipe, other) if type(other) is type(recipe) else ["policy"]
        if keys:
            raise UserError(
                f"the recipe of process {rank} differs in {', '.join(keys)}: start the same command with the same "
                "recipe files on all machines"
            )
    return recipe


def run_training(arguments: argparse.Namespace, processes: PartialState) -> None:
    with shared_errors():
        recipe = same_recipe(recipe_from_arguments(arguments))
        out = arguments.out or Path("runs") / recipe.name
        quantize = isinstance(recipe, VLARecipe) and recipe.run.quantize
        accelerator = placement.create_accelerator(recipe.run.trackers, out, quantize)
        processes.print(placement.describe_processes(accelerator))
        if arguments.dry_run:
            processes.print(describe_run(recipe, accelerator))
            return
    with locked_run_folder(out, accelerator), placement.matmul_precision(recipe.run.matmul_precision):
        run = create_run(recipe, out, arguments.resume, accelerator)
        train(run)
        folder = export(run)
        with shared_errors():
            if accelerator.is_main_process:
                print(summary(run, folder))
        disconnect(accelerator)
        accelerator.end_training()


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    processes = placement.connect_processes()
    try:
        run_training(arguments, processes)
    except SharedError as error:
        if processes.is_local_main_process:
            print(f"train.py: {error}", file=sys.stderr, flush=True)
        disconnect(processes)  # A launcher ends all other processes as soon as the first has ended.
        return 2
    except USER_ERRORS as error:
        print(f"train.py: {format_error(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"train.py: {error or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
