"""Features of other frames, as a control for alignment: they have the distribution of the teacher's features, but say
nothing about the image that they are targets of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from rocket_hf.errors import UserError

from ..data.lerobot_data import RobotDataset
from ..data.loader import FeatureReader


@dataclass
class ShuffledFeatures:
    """Reader that returns the features of a fixed other frame for each frame."""

    features: FeatureReader
    other_frames: np.ndarray  # for each frame of the dataset, the frame whose features are read

    def read(self, index: int) -> Mapping[str, Tensor]:
        return self.features.read(int(self.other_frames[index]))


def shuffle_features(
    readers: Sequence[FeatureReader], datasets: Sequence[RobotDataset], seed: int
) -> list[ShuffledFeatures]:
    """Return a reader for each dataset with a permutation that depends only on the run's seed and the dataset."""
    return [
        ShuffledFeatures(reader, shuffle_dataset(dataset, np.random.default_rng([seed, number])))
        for number, (reader, dataset) in enumerate(zip(readers, datasets, strict=True))
    ]


def shuffle_dataset(dataset: RobotDataset, random: np.random.Generator) -> np.ndarray:
    """Return for each recorded frame of the used episodes another frame of the same task from another used episode."""
    rows = np.concatenate([np.array(dataset.frame_range(episode)) for episode in dataset.episodes])
    frames, first = np.unique(dataset.recorded_frames[rows], return_index=True)  # A resampled frame may repeat one.
    tasks = dataset.task_indices.numpy()[rows[first]]
    episodes = np.asarray(np.searchsorted(dataset.recorded_ends, frames, side="right"))
    others = np.full(int(dataset.recorded_ends[-1]), -1)
    for task in np.unique(tasks):
        is_task = tasks == task
        if len(np.unique(episodes[is_task])) < 2:
            raise UserError(
                f"teacher.targets=shuffled needs at least two episodes of each task, and {dataset.id} has one of "
                f"{dataset.tasks[task]!r}: record more episodes, or set teacher.targets=own"
            )
        others[frames[is_task]] = frames[is_task][shuffle_between_episodes(episodes[is_task], random)]
    return others


def shuffle_between_episodes(episodes: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return for each frame the index of a frame of another episode. `episodes` has the episode of each frame, (n,).

    The episodes stand in random order in a ring, the frames of each in random order, and the ring is turned by at least
    the length of the longest episode in both directions. So the result is a permutation if no episode has more than
    half of the frames; otherwise some frames are used several times, and others not at all.
    """
    numbers, lengths = np.unique(episodes, return_counts=True)
    frames_of_episodes = (np.flatnonzero(episodes == number) for number in random.permutation(numbers))
    ring = np.concatenate([random.permutation(frames) for frames in frames_of_episodes])
    longest, total = int(lengths.max()), len(ring)
    turn = int(random.integers(longest, max(longest, total - longest), endpoint=True))
    result = np.empty(total, dtype=np.int64)
    start = 0
    while start < total:
        length = int(lengths[np.searchsorted(numbers, episodes[ring[start]])])
        places = (turn - length + np.arange(length)) % (total - length)  # among the frames of the other episodes
        result[ring[start : start + length]] = ring[(start + length + places) % total]
        start += length
    return result
