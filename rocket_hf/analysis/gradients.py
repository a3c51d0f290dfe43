"""Whether the losses of a model pull its weights in the same direction: the cosines between their gradients.

ROCKET's claim (arXiv 2602.17951, proposition 2): through one shared projector the gradients of all layer pairs add up,
through independent ones they are unrelated. Shapes: L losses, P numbers of the chosen weights, N batches.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..atomic import write_text
from .heatmap import write_heatmap, write_table

ACTION, ALIGNED = "action", "alignment/"
RESAMPLES, CONFIDENCE = 2000, 0.95


def named_losses(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a model's losses: that of each layer pair by the pair's name, from shallow to deep, and then the action's."""
    pairs = {name.removeprefix(ALIGNED): loss for name, loss in losses.items() if name.startswith(ALIGNED)}
    action = [loss for name, loss in losses.items() if not name.startswith(ALIGNED)]
    shallow_first = sorted(pairs, key=lambda name: tuple(map(int, name.split("-", 1))))
    return {name: pairs[name] for name in shallow_first} | {ACTION: torch.stack(action).sum()}


def loss_gradients(losses: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """(L, P), zeros where a loss does not reach a weight. The graph is kept, and no weight's own gradient changes."""
    rows = []
    for loss in losses:
        found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([gradient.flatten().float() for gradient in found]))
    return torch.stack(rows)


def cosine_table(gradients: Tensor) -> Tensor:
    """(L, L); 0 for a gradient of zeros, which has no direction."""
    directions = F.normalize(gradients, dim=1)
    return directions @ directions.T


def figures_of(table: Tensor) -> dict[str, Tensor]:
    """What a table (..., L, L) of layer pairs and, last, the action says in three numbers: the mean cosine between two
    pairs, the share of such twos that conflict (below 0), and the mean cosine of a pair with the action."""
    pairs = table.shape[-1] - 1
    figures = {"action": table[..., :-1, -1].mean(dim=-1)}
    if pairs > 1:
        row, column = torch.triu_indices(pairs, pairs, offset=1)
        between = table[..., row, column]
        figures |= {"pairs": between.mean(dim=-1), "conflicting": (between < 0).to(table.dtype).mean(dim=-1)}
    return figures


@dataclass
class Interval:
    mean: float
    low: float
    high: float


@dataclass
class Agreement:
    """Mean tables over batches, with what a bootstrap over the batches says of each number."""

    names: list[str]  # of the layer pairs, "STUDENT-TEACHER", and "action"
    mean: list[list[float]]
    low: list[list[float]]
    high: list[list[float]]
    figures: dict[str, Interval]


def bootstrapped(values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean over the first axis, and the ends of its percentile interval."""
    random = np.random.default_rng(seed)
    means = np.stack([
        values[random.integers(len(values), size=len(values))].mean(axis=0) for _ in range(RESAMPLES)
    ])  # fmt: skip
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return values.mean(axis=0), low, high


def agreement_of(names: Sequence[str], tables: Tensor) -> Agreement:
    """Of the tables (N, L, L) of several batches."""
    mean, low, high = bootstrapped(tables.double().cpu().numpy())
    figures = {
        name: Interval(*(float(value) for value in bootstrapped(numbers.double().cpu().numpy())))
        for name, numbers in figures_of(tables).items()
    }
    return Agreement(list(names), mean.tolist(), low.tolist(), high.tolist(), figures)


def write_agreement(folder: Path, agreement: Agreement, about: Mapping[str, Any]) -> None:
    """gradients.json with all numbers, gradients.csv and gradients.png with the mean table."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "gradients.json", json.dumps(dict(about) | asdict(agreement), indent=1))
    table, names = np.array(agreement.mean), agreement.names
    write_table(folder / "gradients.csv", table, names, names, "loss")
    title, labels = "cosines between gradients", ("layer pair", "layer pair")
    write_heatmap(folder / "gradients.png", table, names, names, labels, title, limits=(-1.0, 1.0))
