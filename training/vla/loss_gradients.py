"""Cosines between the gradients of a model's losses: whether the losses pull its weights in the same direction.

ROCKET's claim (arXiv 2602.17951, proposition 2): through one shared projector the gradients of all layer pairs add up;
through independent projectors they are unrelated. Shapes: L losses, P elements of the chosen weights.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ACTION, ALIGNMENT_PREFIX = "action", "alignment/"


def loss_terms(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the loss of each layer pair by the pair's name, from shallow to deep, then the sum of action losses."""
    pairs = {
        name.removeprefix(ALIGNMENT_PREFIX): loss for name, loss in losses.items() if name.startswith(ALIGNMENT_PREFIX)
    }
    action = [loss for name, loss in losses.items() if not name.startswith(ALIGNMENT_PREFIX)]
    shallow_to_deep = sorted(pairs, key=lambda name: tuple(map(int, name.split("-", 1))))
    return {name: pairs[name] for name in shallow_to_deep} | {ACTION: torch.stack(action).sum()}


def loss_gradients(losses: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Return the gradient of each loss, (L, P), with zeros where a loss does not reach a weight.

    The graph is kept, and `weight.grad` does not change.
    """
    rows = []
    for loss in losses:
        gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([gradient.flatten().float() for gradient in gradients]))
    return torch.stack(rows)


def cosine_table(gradients: Tensor) -> Tensor:
    """Return the cosines between gradients (L, P) as (L, L); 0 for a zero gradient, which has no direction."""
    directions = F.normalize(gradients, dim=1)
    return directions @ directions.T


def agreement_metrics(table: Tensor) -> dict[str, Tensor]:
    """Summarize cosine tables (..., L, L) of the layer pairs and, last, the action loss.

    "action" is the mean cosine of a pair with the action loss, "pairs" the mean cosine between two pairs, and
    "conflicting" the share of negative cosines between two pairs.
    """
    pairs = table.shape[-1] - 1
    metrics = {"action": table[..., :-1, -1].mean(dim=-1)}
    if pairs > 1:
        row, column = torch.triu_indices(pairs, pairs, offset=1)
        cosines = table[..., row, column]
        metrics |= {"pairs": cosines.mean(dim=-1), "conflicting": (cosines < 0).to(table.dtype).mean(dim=-1)}
    return metrics
