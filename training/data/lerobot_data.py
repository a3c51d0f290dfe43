"""LeRobot dataset (v3), from a folder or the Hub, as samples for a policy: images, state and action chunks.

States and actions of all frames are kept in memory and a chunk is a slice of them; only the images of the sampled frame
are decoded. (Reading the table once per step of a chunk would decode the images of all its steps.)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.strict_config import suggest_name
from rocket_hf.teachers.dataset_identity import color_cameras, dataset_fingerprint

from ..recipe import DatasetConfig
from .frame_table import SINGLE_DATASET, MixtureEntry, read_frame_table
from .image_files import open_image_readers
from .image_resizer import ImageResizer
from .images import ImageReader, InMemoryImageReader
from .lerobot_files import DatasetFiles, locate_dataset, read_dataset_files

ABSENT_CAMERA = ""  # value in a recipe for a camera that the dataset does not have


class RobotDataset:
    """Samples of a dataset for a policy.

    Frames are identified by their index in the whole dataset, even if only some episodes are used. This is lerobot's
    `index` unless the dataset is resampled; `recorded_frames` has lerobot's index of each frame.
    """

    def __init__(
        self,
        config: DatasetConfig,
        policy: RocketConfig,
        streaming: bool = False,
        in_memory: bool = False,
        resizer: ImageResizer | None = None,
        entry: MixtureEntry = SINGLE_DATASET,
    ):
        """Open a dataset.

        `streaming` fetches frames of videos on the Hub on access instead of downloading the videos; `in_memory` decodes
        all images once, now; `resizer` resizes large images when they are read; `entry` resamples the frames and pads
        the dimensions.
        """
        root, self.revision = locate_dataset(config.id)
        files = read_dataset_files(config.id, root)
        self.id, self.tasks = files.name, files.tasks
        self.fingerprint = dataset_fingerprint(files.meta)
        self.fps = files.meta.fps if entry.rate is None else entry.rate
        self.state_names, self.action_names = files.vector_names(config.state), files.vector_names(config.action)
        self.episodes = select_episodes(config, len(files.lengths))
        self.chunk_size = policy.chunk_size

        self.camera_keys = match_cameras(config, list(policy.cameras), files.camera_keys())
        self.camera_sizes = camera_sizes(files, self.camera_keys)
        self.resizer = resizer
        self.image_sizes = self.camera_sizes  # of the images that `sample` returns
        if resizer is not None:
            self.image_sizes = {camera: resizer.target_size(size) for camera, size in self.camera_sizes.items()}
        table = read_frame_table(config, files, policy, self.episodes, entry)
        self.state, self.actions = table.state, table.actions
        self.state_mask, self.action_mask = table.state_mask, table.action_mask
        self.task_indices, self.recorded_frames = table.task_indices, table.recorded_frames
        self.ends, self.recorded_ends = np.cumsum(table.lengths), np.cumsum(files.lengths)
        self.starts, self.recorded_starts = self.ends - table.lengths, self.recorded_ends - files.lengths
        keys = [key for key in self.camera_keys.values() if key]
        self.image_readers = open_image_readers(files, self.revision, keys, self.episodes, table.timestamps, streaming)
        if in_memory:
            self.image_readers = {key: self.load_images(camera, key) for camera, key in self.camera_keys.items() if key}

    def __len__(self) -> int:
        """Return the number of frames of the dataset, including those of episodes that are not selected."""
        return len(self.actions)

    def frame_range(self, episode: int) -> range:
        return range(int(self.starts[episode]), int(self.ends[episode]))

    def episode_of_frame(self, index: int) -> int:
        return int(np.searchsorted(self.ends, index, side="right"))

    def describe_frame(self, index: int) -> str:
        return self.describe_recorded_frame(int(self.recorded_frames[index]))

    def describe_recorded_frame(self, recorded: int) -> str:
        episode = int(np.searchsorted(self.recorded_ends, recorded, side="right"))
        return f"episode {episode}, frame {recorded - self.recorded_starts[episode]}"

    @property
    def camera_mask(self) -> list[bool]:
        """Presence of each camera of the policy in this dataset, in the policy's order."""
        return [key is not None for key in self.camera_keys.values()]

    def sample(self, index: int) -> dict[str, Any]:
        """Return one frame in robot units, with the indices of the recorded frame that its images and state are from.

        Its images, by camera, are (3, H, W) uint8 of `image_sizes`, black for missing cameras.
        """
        episode, recorded = self.episode_of_frame(index), int(self.recorded_frames[index])
        actions = self.future_actions(index)
        padding = self.chunk_size - len(actions)
        return {
            "images": {camera: self.read_image(camera, index, episode) for camera in self.camera_keys},
            "state": self.state[index],
            "actions": torch.cat([actions, actions[-1:].expand(padding, -1)]),
            "action_is_pad": torch.arange(self.chunk_size) >= len(actions),
            "task": self.tasks[int(self.task_indices[index])],
            "episode_index": episode,
            "frame_index": recorded - int(self.recorded_starts[episode]),
            "index": recorded,
        }

    def future_actions(self, index: int) -> Tensor:
        """Return the actions of the chunk at a frame that lie before the end of its episode, (steps, A)."""
        return self.actions[index : min(index + self.chunk_size, int(self.ends[self.episode_of_frame(index)]))]

    def read_image(self, camera: str, index: int, episode: int) -> Tensor:
        key = self.camera_keys[camera]
        if key is None:
            return torch.zeros(3, *self.image_sizes[camera], dtype=torch.uint8)
        reader, recorded = self.image_readers[key], int(self.recorded_frames[index])
        if isinstance(reader, InMemoryImageReader):
            return reader.read(recorded, episode)
        return self.decode_image(reader, camera, recorded, episode)

    def decode_image(self, reader: ImageReader, camera: str, recorded: int, episode: int) -> Tensor:
        """Return the image of a recorded frame in the size that `sample` returns."""
        try:
            image = reader.read(recorded, episode)
        except UserError as error:
            raise UserError(f"{self.describe_image(camera, recorded)} cannot be read: {error}") from error
        if image.shape[1:] != self.camera_sizes[camera]:
            (height, width), (rows, columns) = self.camera_sizes[camera], image.shape[1:]
            raise UserError(
                f"{self.describe_image(camera, recorded)} has {rows}x{columns} pixels, but "
                f"meta/info.json states {height}x{width}: record the dataset again"
            )
        return image if self.resizer is None else self.resizer(image)

    def describe_image(self, camera: str, recorded: int) -> str:
        return f"the image of camera {camera!r} of {self.id} at {self.describe_recorded_frame(recorded)}"

    def load_images(self, camera: str, key: str) -> InMemoryImageReader:
        """Decode all images of a camera in the selected episodes, in order, which is many times faster than random."""
        used = [self.recorded_frames[self.starts[episode] : self.ends[episode]] for episode in self.episodes]
        frames = np.unique(np.concatenate(used))
        pixels = torch.empty(len(frames), 3, *self.image_sizes[camera], dtype=torch.uint8)
        rows = torch.zeros(int(self.recorded_ends[-1]), dtype=torch.long)
        rows[frames] = torch.arange(len(frames))
        for row, recorded in enumerate(tqdm(frames, desc=f"reading {camera}", unit="", leave=False, disable=None)):
            episode = int(np.searchsorted(self.recorded_ends, recorded, side="right"))
            pixels[row] = self.decode_image(self.image_readers[key], camera, int(recorded), episode)
        return InMemoryImageReader(pixels, rows)

    def read_images(self, indices: Sequence[int]) -> list[Tensor]:
        """Return the images of some frames for each camera, in the policy's order: (n, 3, H, W) uint8.

        Sorted indices are read fastest.
        """
        return [
            torch.stack([self.read_image(camera, index, self.episode_of_frame(index)) for index in indices])
            for camera in self.camera_keys
        ]


def select_episodes(config: DatasetConfig, count: int) -> list[int]:
    if config.episodes is None:
        return list(range(count))
    if not config.episodes:
        raise UserError(f"datasets.episodes of {config.id} is empty: remove it to use all {count} episodes")
    for episode in config.episodes:
        if not 0 <= episode < count:
            raise UserError(f"the dataset {config.id} has no episode {episode}: it has 0..{count - 1}")
    return sorted(set(config.episodes))


def match_cameras(config: DatasetConfig, cameras: list[str], keys: list[str]) -> dict[str, str | None]:
    """Return the dataset's key for each camera of the policy, in the policy's order; None for absent cameras.

    The recipe's mapping, to keys or short names, comes first, then equal names; if no name matches, cameras are matched
    in order. An absent camera must be declared in the recipe.
    """
    by_name = {camera_name(key): key for key in keys}
    mapping = {camera: by_name.get(key, key) for camera, key in config.cameras.items()}
    for camera, key in mapping.items():
        if camera not in cameras:
            raise UserError(
                f"data.datasets.N.cameras of {config.id}: the policy has no camera {camera!r}: "
                f"{suggest_name(camera, cameras)}"
            )
        if key != ABSENT_CAMERA and key not in keys:
            raise UserError(f"the dataset {config.id} has no camera {key!r}: {suggest_name(key, keys)}")
    matched = {camera: mapping.get(camera, by_name.get(camera)) for camera in cameras}
    if not any(matched.values()) and not mapping and len(keys) == len(cameras):
        matched = dict(zip(cameras, keys, strict=True))
    for camera, matched_key in matched.items():
        if matched_key is None:
            raise UserError(
                f"the dataset {config.id} has no camera {camera!r}, which the policy needs: pass --set "
                f'"data.datasets.N.cameras={{{camera}: KEY}}" with the dataset\'s number N, counted from 0, and '
                f"with '' as KEY if it is absent; {suggest_name(camera, keys)}"
            )
    if not any(matched.values()):
        raise UserError(
            f"every camera of {config.id} is absent: map at least one camera to one of {', '.join(keys) or 'none'}"
        )
    return {camera: key or None for camera, key in matched.items()}


def camera_name(key: str) -> str:
    """Return the short name of a dataset's camera key."""
    return key.removeprefix("observation.").removeprefix("images.")


def camera_sizes(files: DatasetFiles, camera_keys: dict[str, str | None]) -> dict[str, tuple[int, int]]:
    """Return (height, width) of each camera; absent cameras get the size of the first camera that is present."""
    known = color_cameras(files.meta)
    sizes = {camera: known[key] for camera, key in camera_keys.items() if key}
    first = next(iter(sizes.values()))
    return {camera: sizes.get(camera, first) for camera in camera_keys}
