"""Whether the losses of a model pull its weights in the same direction: the cosines between their gradients.

ROCKET's claim (arXiv 2602.17951, proposition 2): through one shared projector the gradients of all layer pairs add up,
through independent ones they are unrelated. Shapes: L losses, P numbers of the chosen weights, N batches.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ACTION, ALIGNED = "action", "alignment/"


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
