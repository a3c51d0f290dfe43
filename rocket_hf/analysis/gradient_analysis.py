"""The agreement between the gradients of a run's losses, over many batches of its data."""

from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from rocket_hf.analysis.gradient_report import Agreement, Interval, agreement_of
from rocket_hf.errors import UserError
from rocket_hf.training.vla.gradient_agreement import loss_cosines
from rocket_hf.training.vla.shared_weights import shared_weights

from .restored_run import RestoredRun

TOLD = {"pairs": "two layer pairs", "conflicting": "share of conflicts", "action": "pair and action"}


def analyze_gradients(
    reopened: RestoredRun, beginning: str | None, samples: int, batch_size: int
) -> tuple[Agreement, dict[str, Any]]:
    """The agreement, and what it was measured on. Each pair's loss is that of the run's own projector and width."""
    if batch_size < 1 or samples < 2 * batch_size:
        raise UserError(f"intervals need at least 2 batches: ask for {2 * max(1, batch_size)} samples or more, or a "
                         "smaller --batch-size")  # fmt: skip
    policy = reopened.policy
    head = policy.alignment_head
    assert head is not None
    weights = shared_weights(policy, beginning)
    count = samples // batch_size
    names: list[str] = []
    tables: list[Tensor] = []
    batches = reopened.batches(count * batch_size, batch_size)
    for batch, targets in tqdm(batches, total=count, desc="gradients", unit="batch", disable=None, leave=False):
        with reopened.autocast():
            names, table = loss_cosines(policy, batch, targets, weights)
        tables.append(table)
    about = {
        "recipe": reopened.recipe.name,
        "step": reopened.step,
        "batches": count,
        "batch_size": batch_size,
        "parameters": {name: weight.numel() for name, weight in weights.items()},
        "projectors": len(head.projectors),
        "widths": head.widths,
    }
    return agreement_of(names, torch.stack(tables)), about


def described(agreement: Agreement, about: dict[str, Any]) -> list[str]:
    numbers = sum(about["parameters"].values())
    projectors = "1 projector" if about["projectors"] == 1 else f"{about['projectors']} projectors"
    lines = [
        f"run        {about['recipe']} at step {about['step']}: {projectors} of widths "
        f"{', '.join(map(str, about['widths']))}",
        f"gradients  of {numbers:,} weights in {len(about['parameters'])} tensors, from "
        f"{about['batches']} batches of {about['batch_size']}",
    ]
    return lines + [f"           {phrase:19}{shown(agreement.figures[name])}" for name, phrase in TOLD.items()
                    if name in agreement.figures]  # fmt: skip


def shown(interval: Interval) -> str:
    return f"{interval.mean:+.3f}, 95 % of resampled means in {interval.low:+.3f} .. {interval.high:+.3f}"
