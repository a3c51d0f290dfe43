"""How alike layers are, summed batch by batch, so that memory does not grow with the number of samples.

The samples are image tokens: those of cameras that are there, at places where the teacher has something to say.
Shapes: L layers (the student's, then the teacher's), n tokens of a batch, B samples, V cameras, T tokens of a camera.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from rocket_hf.errors import UserError

NEIGHBORS = 10
FEWEST_TOKENS = NEIGHBORS + 2  # of a batch, for either measure to mean something


class TableOfLayers:
    """The mean over batches of a table (L, L), each entry divided by the root of those of its two layers."""

    def __init__(self, layers: int, of_batch: Callable[[list[Tensor]], Tensor], device: torch.device):
        self.of_batch = of_batch
        self.sums = torch.zeros(layers, layers, dtype=torch.float64, device=device)

    def add(self, features: list[Tensor]) -> None:
        """Of each layer the same n tokens: (n, its width)."""
        self.sums += self.of_batch(features)

    def table(self) -> Tensor:
        scale = self.sums.diagonal().clamp_min(torch.finfo(torch.float64).tiny).sqrt()
        return self.sums / (scale[:, None] * scale)


def hsic_table(features: list[Tensor]) -> Tensor:
    """HSIC_1 of each two layers with linear kernels, whose mean over batches is unbiased (Song et al. 2012, eq. 5).

    TableOfLayers makes of it the minibatch CKA of Nguyen et al. (arXiv 2010.15327, eq. 3).
    """
    grams = torch.stack([gram(each).fill_diagonal_(0) for each in features])  # (L, n, n)
    n = grams.shape[1]
    rows = grams.sum(dim=2)  # (L, n)
    totals = rows.sum(dim=1)
    flat = grams.flatten(1)
    of_traces = flat @ flat.T
    of_totals = totals[:, None] * totals / ((n - 1) * (n - 2))
    of_rows = rows @ rows.T * 2 / (n - 2)
    return (of_traces + of_totals - of_rows) / (n * (n - 3))


def neighbor_table(features: list[Tensor]) -> Tensor:
    """The share of each token's nearest neighbors that two layers have in common (arXiv 2405.07987, section 2)."""
    neighbors = torch.stack([nearest_neighbors(each) for each in features])  # (L, n, n)
    flat = neighbors.flatten(1)
    return flat @ flat.T / flat[0].sum()


def nearest_neighbors(tokens: Tensor) -> Tensor:
    """1 where the column is among the row's nearest by the angle from the mean of all; (n, n)."""
    directions = F.normalize(centerd(tokens), dim=1)
    cosines = (directions @ directions.T).fill_diagonal_(-torch.inf)
    found = cosines.topk(NEIGHBORS, dim=1).indices
    return torch.zeros_like(cosines).scatter_(1, found, 1.0)


def centerd(tokens: Tensor) -> Tensor:
    tokens = tokens.float()
    return tokens - tokens.mean(dim=0)


def gram(tokens: Tensor) -> Tensor:
    """(n, n) in float64. Of centerd tokens: no HSIC_1 depends on the mean, but its digits do."""
    tokens = centerd(tokens)
    return (tokens @ tokens.T).double()


class ResidualChange:
    """How little a stream changes over windows of blocks: the mean cosine between a token before and after them."""

    def __init__(self, depth: int, windows: Sequence[int], device: torch.device):
        for window in windows:
            if not 1 <= window <= depth:
                raise UserError(f"a window of {window} blocks does not fit into {depth} blocks: give 1 to {depth}")
        self.windows, self.depth = list(windows), depth
        self.sums = torch.zeros(len(windows) + 1, depth, dtype=torch.float64, device=device)  # last row: the tokens

    def add(self, stream: Mapping[int, Tensor], there: Tensor) -> None:
        """Taps 0..depth, each (B, V, T, D), of tokens that are `there` (B, V, T)."""
        unit = {layer: F.normalize(tokens[there].float(), dim=-1) for layer, tokens in stream.items()}
        for row, window in enumerate(self.windows):
            for layer in range(window, self.depth + 1):
                self.sums[row, layer - 1] += torch.linalg.vecdot(unit[layer - window], unit[layer]).double().sum()
        self.sums[-1] += there.sum()

    def similarity(self) -> Tensor:
        """(windows, depth): entry l - 1 is about the window that ends with block l; NaN where none does."""
        means = self.sums[:-1] / self.sums[-1]
        for row, window in enumerate(self.windows):
            means[row, : window - 1] = torch.nan
        return means


def sample_tokens(there: Tensor, count: int, generator: Generator) -> Tensor:
    """The places of up to `count` tokens of those that are there, in (B x V x T), drawn without replacement."""
    places = there.flatten().nonzero().flatten()
    if len(places) < FEWEST_TOKENS:
        raise UserError(f"a batch has {len(places)} image tokens with a target, and needs {FEWEST_TOKENS} to compare "
                         "layers by: take more samples at a time")  # fmt: skip
    order = torch.randperm(len(places), generator=generator)[:count]
    return places[order.to(places.device)]
