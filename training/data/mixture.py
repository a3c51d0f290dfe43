"""Which frame comes at which position of a run: a pure function of the seed and the position.

Nothing is remembered between two positions, so a run goes on at the exact sample from any step, on any number of ranks
and workers: rank r of W with batches of b reads the positions g x W x b + r x b + (0 .. b-1) at its step g.

The datasets of a mixture share a block of positions in proportion to their weights, in an order drawn for that block,
and each goes through its frames pass by pass, every pass in a new order in which each frame comes exactly once.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from rocket_hf.errors import UserError

SHARES = 2**32  # weights are whole parts of this many, so that no rounding depends on the position
SMALLEST_BLOCK = 1024
LARGEST_BLOCK = 2**22


class FrameRanges:
    """The frames of some episodes, one after the other: the n-th of them is which frame of the dataset."""

    def __init__(self, spans: Sequence[range]):
        self.starts = np.array([span.start for span in spans], dtype=np.int64)
        self.ends = np.cumsum([len(span) for span in spans], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, number: int) -> int:
        span = int(np.searchsorted(self.ends, number, side="right"))
        before = int(self.ends[span - 1]) if span else 0
        return int(self.starts[span]) + number - before


def split_episodes(episodes: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Episodes to train on and held-out ones: at least one of each, if there are two and a share is asked for."""
    if not 0 <= share < 1:
        raise UserError(f"data.validation is the share of the episodes that is held out, from 0 to below 1: {share}")
    held_out = 0
    if share and len(episodes) > 1:
        held_out = min(max(1, round(share * len(episodes))), len(episodes) - 1)
    shuffled = np.random.default_rng([seed, len(episodes)]).permutation(episodes).tolist()
    return sorted(shuffled[held_out:]), sorted(shuffled[:held_out])


class MixtureOrder:
    """(number of the dataset, frame in it) by position, without end. By default each dataset comes as often as it has
    frames. `shuffle=False` keeps each dataset's frames in their order."""

    def __init__(
        self,
        frames: Sequence[FrameRanges],
        weights: Sequence[float | None] | None = None,
        seed: int = 0,
        shuffle: bool = True,
    ):
        self.frames, self.seed, self.shuffle = list(frames), seed, shuffle
        for number, part in enumerate(self.frames):
            if not len(part):
                raise UserError(f"dataset {number} of the mixture has no frames to train on")
        self.bounds = cumulative_shares(self.frames, weights)
        smallest = min(end - start for start, end in pairwise(self.bounds))
        self.block_size = SMALLEST_BLOCK
        while self.block_size * smallest < 2 * SHARES:  # else a dataset's part of a block could be negative
            self.block_size *= 2
        if self.block_size > LARGEST_BLOCK:
            raise UserError(
                f"a weight of the mixture is below a millionth of their sum, leave it out: {list(weights or [])}"
            )
        self.block: tuple[int, np.ndarray, np.ndarray] = (-1, np.empty(0), np.empty(0))
        self.passes: dict[tuple[int, int], np.ndarray] = {}

    def __getitem__(self, position: int) -> tuple[int, int]:
        block, place = divmod(position, self.block_size)
        if self.block[0] != block:
            self.block = (block, *self.draw_block(block))
        _, datasets, earlier = self.block
        dataset = int(datasets[place])
        number = self.taken(block)[dataset] + int(earlier[place])
        rounds, place = divmod(number, len(self.frames[dataset]))
        return dataset, self.frames[dataset][self.permuted(dataset, rounds, place)]

    def taken(self, block: int) -> list[int]:
        """How many samples of each dataset come before a block."""
        upto = [block * self.block_size * bound // SHARES for bound in self.bounds]
        return [end - start for start, end in pairwise(upto)]

    def draw_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each position in the block: its dataset, and how many of the block's earlier positions have the same."""
        counts = np.subtract(self.taken(block + 1), self.taken(block))
        datasets = np.repeat(np.arange(len(counts)), counts)
        if self.shuffle:
            datasets = np.random.default_rng([self.seed, block]).permutation(datasets)
        earlier = np.empty(self.block_size, dtype=np.int64)
        for dataset, count in enumerate(counts):
            earlier[datasets == dataset] = np.arange(count)
        return datasets, earlier

    def permuted(self, dataset: int, rounds: int, place: int) -> int:
        """A place of a pass. The orders of this pass and of the one before it are kept: batches straddle them."""
        if not self.shuffle:
            return place
        order = self.passes.get((dataset, rounds))
        if order is None:
            random = np.random.default_rng([self.seed, dataset, rounds])
            order = random.permutation(np.arange(len(self.frames[dataset]), dtype=np.uint32))
            for stale in [key for key in self.passes if key[0] == dataset and abs(key[1] - rounds) > 1]:
                del self.passes[stale]
            self.passes[dataset, rounds] = order
        return int(order[place])

    def __getstate__(self) -> dict:
        """Workers draw for themselves."""
        return self.__dict__ | {"block": (-1, np.empty(0), np.empty(0)), "passes": {}}


def cumulative_shares(frames: Sequence[FrameRanges], weights: Sequence[float | None] | None) -> list[int]:
    """0, then the sum of the shares up to each dataset; the last is SHARES."""
    given = list(weights) if weights is not None else [None] * len(frames)
    if len(given) != len(frames):
        raise UserError(f"the mixture has {len(frames)} datasets and {len(given)} weights")
    if any(weight is None for weight in given) and not all(weight is None for weight in given):
        raise UserError(f"give each dataset of the mixture a weight, or none of them: {given}")
    sizes = [len(part) if weight is None else weight for part, weight in zip(frames, given, strict=True)]
    if not all(np.isfinite(size) and size > 0 for size in sizes):
        raise UserError(f"the weights of a mixture must be above 0: {given}")
    bounds = [round(float(total) * SHARES) for total in np.cumsum(sizes) / np.sum(sizes)]
    return [0, *bounds[:-1], SHARES]


class EvenlySpacedOrder:
    """A fixed choice of frames for validation, spread evenly over all that are held out."""

    def __init__(self, frames: Sequence[FrameRanges], count: int):
        self.frames = list(frames)
        self.ends = np.cumsum([len(part) for part in frames])
        available = int(self.ends[-1])
        self.count = min(count, available)
        self.chosen = (np.arange(self.count) * 2 + 1) * available // (2 * max(1, self.count))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> tuple[int, int]:
        number = int(self.chosen[position])
        dataset = int(np.searchsorted(self.ends, number, side="right"))
        before = int(self.ends[dataset - 1]) if dataset else 0
        return dataset, self.frames[dataset][number - before]
