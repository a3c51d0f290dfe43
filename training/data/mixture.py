"""Order of the samples of a run: a pure function of the seed and the position.

No state is carried between positions, so that a run resumes at the exact sample from any step, on any number of ranks
and workers: at step g, rank r of W reads, with batches of b, the positions g x W x b + r x b + (0 .. b-1).

The datasets of a mixture share a block of positions in proportion to their weights, in an order drawn for that block.
Each dataset runs through its frames epoch by epoch; every epoch is a new permutation that contains each frame once.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from rocket_hf.errors import UserError

SHARE_UNITS = 2**32  # shares are integers out of this total, so that no rounding depends on the position
MIN_BLOCK_SIZE = 1024
MAX_BLOCK_SIZE = 2**22


class FrameRanges:
    """Concatenated frame ranges of some episodes: maps 0 .. n-1 to frame indices of the dataset."""

    def __init__(self, ranges: Sequence[range]):
        self.starts = np.array([frames.start for frames in ranges], dtype=np.int64)
        self.ends = np.cumsum([len(frames) for frames in ranges], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, position: int) -> int:
        range_index = int(np.searchsorted(self.ends, position, side="right"))
        preceding = int(self.ends[range_index - 1]) if range_index else 0
        return int(self.starts[range_index]) + position - preceding


def split_episodes(episodes: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split episodes into training and held-out ones.

    Both parts have at least one episode if there are two episodes and `share` is above 0.
    """
    if not 0 <= share < 1:
        raise UserError(f"data.validation, the share of held-out episodes, must lie in [0, 1), got {share}")
    held_out = 0
    if share and len(episodes) > 1:
        held_out = min(max(1, round(share * len(episodes))), len(episodes) - 1)
    shuffled = np.random.default_rng([seed, len(episodes)]).permutation(episodes).tolist()
    return sorted(shuffled[held_out:]), sorted(shuffled[:held_out])


class MixtureOrder:
    """Endless order of training samples: (index of the dataset, frame index in it) for every position.

    Without weights, each dataset is drawn in proportion to its number of frames. `shuffle=False` keeps the frames of
    each dataset in their order.
    """

    def __init__(
        self,
        frames: Sequence[FrameRanges],
        weights: Sequence[float | None] | None = None,
        seed: int = 0,
        shuffle: bool = True,
    ):
        self.frames, self.seed, self.shuffle = list(frames), seed, shuffle
        for index, dataset_frames in enumerate(self.frames):
            if not len(dataset_frames):
                raise UserError(
                    f"dataset {index} of the mixture has no frames to train on: remove it, or lower data.validation"
                )
        self.bounds = cumulative_shares(self.frames, weights)
        smallest = min(end - start for start, end in pairwise(self.bounds))
        self.block_size = MIN_BLOCK_SIZE
        while self.block_size * smallest < 2 * SHARE_UNITS:  # otherwise a dataset's count in a block could be negative
            self.block_size *= 2
        if self.block_size > MAX_BLOCK_SIZE:
            raise UserError(
                "a weight of the mixture is below a millionth of their sum: remove that dataset, the weights are "
                f"{list(weights or [])}"
            )
        self.block: tuple[int, np.ndarray, np.ndarray] = (-1, np.empty(0), np.empty(0))
        self.permutations: dict[tuple[int, int], np.ndarray] = {}

    def __getitem__(self, position: int) -> tuple[int, int]:
        block, offset = divmod(position, self.block_size)
        if self.block[0] != block:
            self.block = (block, *self.draw_block(block))
        _, datasets, preceding = self.block
        dataset = int(datasets[offset])
        sample = self.samples_before_block(block)[dataset] + int(preceding[offset])
        epoch, offset = divmod(sample, len(self.frames[dataset]))
        return dataset, self.frames[dataset][self.shuffled_index(dataset, epoch, offset)]

    def samples_before_block(self, block: int) -> list[int]:
        """Return for each dataset how many of its samples precede a block."""
        cumulative = [block * self.block_size * bound // SHARE_UNITS for bound in self.bounds]
        return [end - start for start, end in pairwise(cumulative)]

    def draw_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw the dataset of each position in a block.

        The second array counts, for each position, the earlier positions of the block with the same dataset.
        """
        counts = np.subtract(self.samples_before_block(block + 1), self.samples_before_block(block))
        datasets = np.repeat(np.arange(len(counts)), counts)
        if self.shuffle:
            datasets = np.random.default_rng([self.seed, block]).permutation(datasets)
        preceding = np.empty(self.block_size, dtype=np.int64)
        for dataset, count in enumerate(counts):
            preceding[datasets == dataset] = np.arange(count)
        return datasets, preceding

    def shuffled_index(self, dataset: int, epoch: int, offset: int) -> int:
        """Return the frame at `offset` of an epoch.

        The permutations of this epoch and of its neighbors are cached, because batches straddle two epochs.
        """
        if not self.shuffle:
            return offset
        permutation = self.permutations.get((dataset, epoch))
        if permutation is None:
            random = np.random.default_rng([self.seed, dataset, epoch])
            permutation = random.permutation(np.arange(len(self.frames[dataset]), dtype=np.uint32))
            for stale in [key for key in self.permutations if key[0] == dataset and abs(key[1] - epoch) > 1]:
                del self.permutations[stale]
            self.permutations[dataset, epoch] = permutation
        return int(permutation[offset])

    def __getstate__(self) -> dict:
        """Leave cached arrays out of the pickle: workers draw their own."""
        return self.__dict__ | {"block": (-1, np.empty(0), np.empty(0)), "permutations": {}}


def cumulative_shares(frames: Sequence[FrameRanges], weights: Sequence[float | None] | None) -> list[int]:
    """Return the cumulative shares of the datasets: 0, the sum up to each dataset, and at last SHARE_UNITS."""
    given = list(weights) if weights is not None else [None] * len(frames)
    if len(given) != len(frames):
        raise UserError(f"the mixture has {len(frames)} datasets and {len(given)} weights: give one weight per dataset")
    if any(weight is None for weight in given) and not all(weight is None for weight in given):
        raise UserError(f"give each dataset of the mixture a weight, or none of them: {given}")
    sizes = [
        len(dataset_frames) if weight is None else weight for dataset_frames, weight in zip(frames, given, strict=True)
    ]
    if not all(np.isfinite(size) and size > 0 for size in sizes):
        raise UserError(f"the weights of a mixture must be above 0 and finite, got {given}")
    bounds = [round(float(total) * SHARE_UNITS) for total in np.cumsum(sizes) / np.sum(sizes)]
    return [0, *bounds[:-1], SHARE_UNITS]


class EvenlySpacedOrder:
    """Fixed order of validation samples, evenly spaced over all held-out frames."""

    def __init__(self, frames: Sequence[FrameRanges], count: int):
        self.frames = list(frames)
        self.ends = np.cumsum([len(dataset_frames) for dataset_frames in frames])
        available = int(self.ends[-1])
        self.count = min(count, available)
        self.positions = (np.arange(self.count) * 2 + 1) * available // (2 * max(1, self.count))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> tuple[int, int]:
        frame = int(self.positions[position])
        dataset = int(np.searchsorted(self.ends, frame, side="right"))
        preceding = int(self.ends[dataset - 1]) if dataset else 0
        return dataset, self.frames[dataset][frame - preceding]
