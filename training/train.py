"""Trains a policy from LeRobot datasets, aligned with a 3D vision model or not: everything is in the recipe.

    accelerate launch training/train.py --recipe rocket --policy you/base --dataset you/robot-data

The loop is `train`, one step of it `training_step`. The losses are the model's, modeling/modeling_rocket.py or
modeling/modeling_rocket2.py; what is particular to each lies in aligned.py and goals/system.py.
"""

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm
from transformers.utils import logging

from rocket_hf.errors import USER_ERRORS, UserError, format_error
from rocket_hf.training.distributed.placement import gradients_averaged, make_accelerator
from rocket_hf.training.export import export, save_batches, summary
from rocket_hf.training.optimization import alignment_weight, rate_factor, set_rates, update
from rocket_hf.training.recipe import Recipe, RunConfig
from rocket_hf.training.recipe_checks import check_recipe
from rocket_hf.training.recipe_files import read_recipe
from rocket_hf.training.run import Losses, Run, TrainState
from rocket_hf.training.setup import create_run
from rocket_hf.training.validation import validate
from rocket_hf.training.vla.dry_run import describe


def train(run: Run) -> None:
    recipe, progress, steps = run.recipe, run.progress, run.recipe.run.steps
    stopping = StopSignal(run.accelerator)
    hidden = not run.accelerator.is_main_process or None  # None: hidden where nobody looks at a terminal
    bar = tqdm(total=steps, initial=progress.step, desc=recipe.name, disable=hidden)
    since = time.perf_counter()
    while progress.step < steps:
        rates = set_rates(run.optimizer, rate_factor(recipe.schedule, progress.step, steps))
        with run.times("data"):
            batches = next(run.batches)
        measured = run.system.measured(run, batches)

        losses, norm, skipped = training_step(run, batches, progress.step)

        progress.step += 1
        bar.update()
        run.recent.append(batches)
        run.journal.add(
            progress.step, **losses, gradient_norm=norm, skipped=skipped, **measured, **rates, **run.times.take()
        )
        due = due_after(progress.step, recipe.run)
        if not due and not stopping.here_alone():
            continue
        since = look(run, since, bar)
        stop = stopping.anywhere()
        if "validate" in due:
            validate(run)
        if "save" in due or stop:
            run.checkpoints.save(run.accelerator, run.policy, run.optimizer, run.average, progress)
        if stop:
            raise KeyboardInterrupt(f"stopped by a signal after step {progress.step}: --resume goes on from there")
    bar.close()


def due_after(step: int, config: RunConfig) -> set[str]:
    """What is to be done after a step; any of it is a moment to look at the losses."""
    every = {"look": config.log_every, "validate": config.validate_every, "save": config.save_every}
    return {what for what, count in every.items() if step % count == 0 or step == config.steps}


def training_step(run: TrainState, batches: list[Any], step: int) -> tuple[Losses, Tensor, Tensor]:
    """One step of the optimizer: forward and backward for each batch, then the update, unless it is not finite."""
    losses: list[Losses] = []
    carried = None
    for number, raw in enumerate(batches, start=1):
        with gradients_averaged(run.model, last=number == len(batches)):
            named, carried = forward_backward(run, raw, step, len(batches), carried)
        losses.append(named)
    with run.times("optimizer"):
        if run.projection is not None:
            run.projection.settle()
        norm, skipped = update(run.optimizer, run.recipe.optimizer.clip_norm)
        if run.average is not None:
            run.average.update(run.policy)
    means = {name: torch.stack([part[name] for part in losses]).mean() for name in losses[0]}
    return means, norm, skipped


def forward_backward(run: TrainState, raw: Any, step: int, passes: int, carried: Any) -> tuple[Losses, Any]:
    """The named losses of one pass, whose weighted sum goes backward; and what the next pass goes on from."""
    losses, total, carried = run.system.losses(run, raw, step, carried)
    with run.times("student"):
        if run.projection is None:
            run.accelerator.backward(total / passes)
        else:
            run.projection.add(losses, alignment_weight(run.recipe.alignment, step), passes)
    return {name: loss.detach() for name, loss in losses.items()} | {"loss": total.detach()}, carried


def look(run: Run, since: float, bar: tqdm) -> float:
    """Writes the steps since the last look, and stops the run if too many of them in a row were not finite."""
    records = run.journal.flush()
    now = time.perf_counter()
    speed = len(records) * run.recipe.run.batch_size / (now - since) if records else 0.0
    count_skipped(run, records)
    run.recent.clear()
    if records:
        memory = {"memory_mib": torch.cuda.max_memory_allocated() / 2**20} if torch.cuda.is_available() else {}
        run.journal.tell(records[-1]["step"], samples_per_second=round(speed, 3), **memory)
        bar.set_postfix(loss=f"{records[-1]['loss']:.3f}", samples_per_s=f"{speed:.1f}", refresh=False)
    return now


def count_skipped(run: Run, records: list[dict[str, Any]]) -> None:
    """Names the samples of each step that was not finite, of all ranks; too many such steps in a row end the run."""
    progress, most = run.progress, run.recipe.run.most_skipped
    for record, raw in zip(records, run.recent, strict=True):
        if not record["skipped"]:
            progress.skipped_in_row = 0
            continue
        progress.skipped += 1
        progress.skipped_in_row += 1
        run.journal.write([{"step": record["step"], "skipped_samples": gather_object(sample_names(raw))}])
        if progress.skipped_in_row >= most:
            path = save_batches(run, raw)
            raise UserError(
                f"{most} steps in a row had no finite loss, the last is step {record['step']}: "
                f"its batch is in {path}; lower optimizer.lr, or set optimizer.clip_norm"
            )


def sample_names(batches: list[Any]) -> list[dict[str, int]]:
    names = ("dataset", "episode_index", "frame_index")
    rows = [torch.stack([batch[name] for name in names], dim=1).tolist() for batch in batches]
    return [dict(zip(names, row, strict=True)) for part in rows for row in part]


class StopSignal:
    """Notes SIGTERM, which clusters send before they take a machine away. All ranks stop after the same step."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator, self.noted = accelerator, False
        signal.signal(signal.SIGTERM, self.note)

    def note(self, number: int, frame: Any) -> None:
        self.noted = True

    def here_alone(self) -> bool:
        return self.noted and self.accelerator.num_processes == 1

    def anywhere(self) -> bool:
        flag = torch.tensor(float(self.noted), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum"))


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="rocket", help="a recipe's name, or a YAML file (default: %(default)s)")
    parser.add_argument("--policy", help="folder or Hub id (owner/name@revision) of the policy to start from")
    parser.add_argument(
        "--dataset", action="append", default=[], help="folder or Hub id of a LeRobot dataset; repeatable"
    )
    parser.add_argument("--teacher", help="folder or Hub id of the 3D vision model")
    parser.add_argument("--cache", action="append", default=[], help="folder of its cached features, one per dataset")
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/RECIPE)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe; repeatable")
    parser.add_argument("--dry-run", action="store_true", help="print what would happen, and stop")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out from its last checkpoint")
    return parser.parse_args(argv)


def recipe_of(given: argparse.Namespace) -> Recipe:
    changes = [f"policy={given.policy}"] if given.policy else []
    changes += [f"data.datasets.{number}.id={name}" for number, name in enumerate(given.dataset)]
    changes += [f"teacher.name={given.teacher}"] if given.teacher else []
    changes += [f"teacher.caches.{number}={name}" for number, name in enumerate(given.cache)]
    recipe = read_recipe(given.recipe, [*changes, *given.set])
    check_recipe(recipe)
    return recipe


def main(argv: list[str] | None = None) -> int:
    given = arguments(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        recipe = recipe_of(given)
        out = given.out or Path("runs") / recipe.name
        accelerator = make_accelerator(recipe, out)
        if given.dry_run:
            accelerator.print(describe(recipe, accelerator))
            return 0
        run = create_run(recipe, out, given.resume, accelerator)
        train(run)
        folder = export(run)
        if accelerator.is_main_process:
            print(summary(run, folder))
        accelerator.end_training()
    except USER_ERRORS as error:
        print(f"train.py: {format_error(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"train.py: {error or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
