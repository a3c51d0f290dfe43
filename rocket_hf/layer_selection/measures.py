"""Similarity measures between layers, summed batch by batch, so that memory does not grow with the number of samples.

They compare image tokens of present cameras at which the teacher has a target.
Shapes: L layers (the student's, then the teacher's), n tokens of a batch, B samples, V cameras, T tokens of a camera.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from rocket_hf.errors import UserError

NEIGHBORS = 10
MIN_TOKENS = NEIGHBORS + 2  # tokens of a batch that both measures require


class LayerTable:
    """Table (L, L) averaged over batches, normalized so that its diagonal is 1."""

    def __init__(self, layers: int, batch_table: Callable[[list[Tensor]], Tensor], device: torch.device):
        self.batch_table = batch_table
        self.sums = torch.zeros(layers, layers, dtype=torch.float64, device=device)

    def add(self, features: list[Tensor]) -> None:
        """Add one batch: the features (n, width) of each layer at the same n tokens."""
        self.sums += self.batch_table(features)

    def table(self) -> Tensor:
        scale = self.sums.diagonal().clamp_min(torch.finfo(torch.float64).tiny).sqrt()
        return self.sums / (scale[:, None] * scale)


def hsic_table(features: list[Tensor]) -> Tensor:
    """Return HSIC_1 of all pairs of layers with linear kernels; its mean over batches is unbiased (Song et al. 2012,
    eq. 5).

    Normalized by LayerTable, it is the minibatch CKA of Nguyen et al. (arXiv 2010.15327, eq. 3).
    """
    grams = torch.stack([gram_matrix(layer).fill_diagonal_(0) for layer in features])  # (L, n, n)
    n = grams.shape[1]
    rows = grams.sum(dim=2)  # (L, n)
    totals = rows.sum(dim=1)
    flat = grams.flatten(1)
    trace_term = flat @ flat.T
    total_term = totals[:, None] * totals / ((n - 1) * (n - 2))
    row_term = rows @ rows.T * 2 / (n - 2)
    return (trace_term + total_term - row_term) / (n * (n - 3))


def neighbor_table(features: list[Tensor]) -> Tensor:
    """Return the share of each token's nearest neighbors that two layers have in common (arXiv 2405.07987, sec. 2)."""
    neighbors = torch.stack([nearest_neighbors(layer) for layer in features])  # (L, n, n)
    flat = neighbors.flatten(1)
    return flat @ flat.T / flat[0].sum()


def nearest_neighbors(tokens: Tensor) -> Tensor:
    """Return a matrix (n, n) with 1 for the nearest neighbors of each row, by the cosine of centered tokens."""
    directions = F.normalize(center(tokens), dim=1)
    cosines = (directions @ directions.T).fill_diagonal_(-torch.inf)
    neighbors = cosines.topk(NEIGHBORS, dim=1).indices
    return torch.zeros_like(cosines).scatter_(1, neighbors, 1.0)


def center(tokens: Tensor) -> Tensor:
    tokens = tokens.float()
    return tokens - tokens.mean(dim=0)


def gram_matrix(tokens: Tensor) -> Tensor:
    """Return the Gram matrix (n, n) in float64. HSIC_1 does not depend on the mean; centering improves precision."""
    tokens = center(tokens)
    return (tokens @ tokens.T).double()


class ResidualChange:
    """Similarity of the residual stream before and after windows of blocks: the mean cosine of its tokens."""

    def __init__(self, depth: int, windows: Sequence[int], device: torch.device):
        for window in windows:
            if not 1 <= window <= depth:
                raise UserError(f"a window of {window} blocks does not fit into {depth} blocks: choose 1..{depth}")
        self.windows, self.depth = list(windows), depth
        # Sums of cosines, one row per window size; the last row counts the tokens.
        self.sums = torch.zeros(len(windows) + 1, depth, dtype=torch.float64, device=device)

    def add(self, stream: Mapping[int, Tensor], token_mask: Tensor) -> None:
        """Add the layers 0..depth of a batch, each (B, V, T, D), at the tokens of `token_mask` (B, V, T)."""
        unit = {layer: F.normalize(tokens[token_mask].float(), dim=-1) for layer, tokens in stream.items()}
        for row, window in enumerate(self.windows):
            for layer in range(window, self.depth + 1):
                self.sums[row, layer - 1] += torch.linalg.vecdot(unit[layer - window], unit[layer]).double().sum()
        self.sums[-1] += token_mask.sum()

    def similarity(self) -> Tensor:
        """Return similarities (windows, depth). Entry l - 1 is for the window that ends with block l, NaN if none."""
        means = self.sums[:-1] / self.sums[-1]
        for row, window in enumerate(self.windows):
            means[row, : window - 1] = torch.nan
        return means


def sample_tokens(token_mask: Tensor, count: int, generator: Generator) -> Tensor:
    """Draw up to `count` tokens of the mask without replacement; return their indices in (B x V x T)."""
    indices = token_mask.flatten().nonzero().flatten()
    if len(indices) < MIN_TOKENS:
        raise UserError(
            f"a batch has {len(indices)} image tokens with a target, but comparing layers needs {MIN_TOKENS}: raise "
            "--batch-size"
        )
    order = torch.randperm(len(indices), generator=generator)[:count]
    return indices[order.to(indices.device)]
