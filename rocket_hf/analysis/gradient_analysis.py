"""Gradient agreement of a run's losses on many batches of its data (`rocket-hf analyze gradients`)."""

from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from rocket_hf.errors import UserError
from rocket_hf.training.vla.gradient_agreement import loss_cosines
from rocket_hf.training.vla.shared_weights import shared_weights

from .gradient_report import ConfidenceInterval, GradientAgreementSummary, summarize_agreement
from .restored_run import RestoredRun

# Labels of the metrics that `agreement_metrics` returns.
METRIC_LABELS = {
    "pairs": "mean cosine of two layer pairs",
    "conflicting": "share of negative cosines",
    "action": "mean cosine of pair and action",
}


def analyze_gradients(
    restored: RestoredRun, name_prefix: str | None, samples: int, batch_size: int
) -> tuple[GradientAgreementSummary, dict[str, Any]]:
    """Compute the cosines between the gradients of a run's losses, on the first samples of its training data.

    The losses are those of the layer pairs, with the run's own projectors and target widths, and the action loss.

    Args:
        restored: The run at one of its checkpoints.
        name_prefix: Beginning of the names of the weights to differentiate with respect to; None for the weights of the
            first aligned block.
        samples: Number of training samples, rounded down to whole batches.
        batch_size: Samples per gradient.

    Returns:
        The cosines with confidence intervals over the batches, and a description of the measurement for the report.
    """
    if batch_size < 1 or samples < 2 * batch_size:
        raise UserError(
            f"confidence intervals need at least 2 batches, got {samples} samples in batches of {batch_size}: pass at "
            f"least --samples {2 * max(1, batch_size)}, or a smaller --batch-size"
        )
    policy = restored.policy
    head = policy.alignment_head
    assert head is not None
    weights = shared_weights(policy, name_prefix)
    batch_count = samples // batch_size
    names: list[str] = []
    tables: list[Tensor] = []  # one (losses, losses) table of cosines for each batch
    batches = restored.batches(batch_count * batch_size, batch_size)
    for batch, targets in tqdm(batches, total=batch_count, desc="gradients", unit="batch", disable=None, leave=False):
        with restored.autocast():
            names, table = loss_cosines(policy, batch, targets, weights)
        tables.append(table)
    about = {
        "recipe": restored.recipe.name,
        "step": restored.step,
        "batches": batch_count,
        "batch_size": batch_size,
        "parameters": {name: weight.numel() for name, weight in weights.items()},
        "projectors": len(head.projectors),
        "widths": head.widths,
    }
    return summarize_agreement(names, torch.stack(tables)), about


def format_agreement(agreement: GradientAgreementSummary, about: dict[str, Any]) -> list[str]:
    """Return the lines that the command prints. `about` is the description that `analyze_gradients` returns."""
    weight_count = sum(about["parameters"].values())
    projectors = "1 projector" if about["projectors"] == 1 else f"{about['projectors']} projectors"
    lines = [
        f"run        {about['recipe']} at step {about['step']}: {projectors} of widths "
        f"{', '.join(map(str, about['widths']))}",
        f"gradients  of {weight_count:,} weights in {len(about['parameters'])} tensors, from "
        f"{about['batches']} batches of {about['batch_size']}",
    ]
    return lines + [f"           {label:32}{format_interval(agreement.metrics[name])}"
                    for name, label in METRIC_LABELS.items() if name in agreement.metrics]  # fmt: skip


def format_interval(interval: ConfidenceInterval) -> str:
    return f"{interval.mean:+.3f}, 95 % of resampled means in {interval.low:+.3f} .. {interval.high:+.3f}"
