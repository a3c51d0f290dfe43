"""One LeRobot dataset (v3), from a folder or the Hub, as a policy sees it: its cameras, its state, its action chunks.

State and actions of all frames lie in memory and a chunk is a slice of them; only the pictures of the frame itself are
decoded. (A reader that asks the table for each step of a chunk decodes all pictures of all steps.)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.strict_config import nearest
from rocket_hf.teachers.cache_manifest import LOCAL
from rocket_hf.teachers.dataset_identity import color_cameras, dataset_fingerprint

from ..recipe import DatasetConfig
from .images import ArrowImageReader, ImageReader, InMemoryImageReader, VideoImageReader
from .lerobot_files import DatasetFiles, download, locate, read_columns, read_files

ABSENT = ""  # what a recipe maps a camera to that the dataset does not have


class RobotDataset:
    """Frames are named by their number in the dataset, lerobot's `index`, whichever episodes are chosen."""

    def __init__(self, config: DatasetConfig, policy: RocketConfig, streaming: bool = False, in_memory: bool = False):
        """With `streaming`, videos on the Hub are not downloaded: frames are fetched when they are asked for. With
        `in_memory`, every picture is decoded now, once."""
        root, self.revision = locate(config.id)
        files = read_files(config.id, root)
        self.id = root.resolve().name if self.revision == LOCAL else config.id.partition("@")[0]
        self.fingerprint = dataset_fingerprint(files.meta)
        self.fps, self.tasks = files.meta.fps, files.tasks
        self.ends = np.cumsum(files.lengths)
        self.starts = self.ends - files.lengths
        self.episodes = chosen_episodes(config, len(files.lengths))
        self.chunk_size = policy.chunk_size

        self.camera_keys = match_cameras(config, list(policy.cameras), files.camera_keys())
        self.camera_sizes = camera_sizes(files, self.camera_keys)
        columns = self.read_numbers(config, policy, files)
        self.state = vectors(config, columns[config.state], policy.state_dim, "state")
        self.actions = vectors(config, columns[config.action], policy.action_dim, "action")
        self.task_indices = torch.from_numpy(columns["task_index"].astype(np.int32))
        self.check_numbers()
        keys = [key for key in self.camera_keys.values() if key]
        self.sources = open_sources(files, self.revision, keys, self.episodes, columns["timestamp"], streaming)
        if in_memory:
            self.sources = {key: self.kept(camera) for camera, key in self.camera_keys.items() if key}

    def read_numbers(self, config: DatasetConfig, policy: RocketConfig, files: DatasetFiles) -> dict[str, np.ndarray]:
        names = ["index", "episode_index", "frame_index", "timestamp", "task_index"]
        columns = read_columns(config.id, files.data_files(), [*dict.fromkeys([config.state, config.action]), *names])
        check_frames(files, columns["index"], columns["episode_index"])
        if columns["task_index"].max() >= len(files.tasks):
            raise UserError(f"the dataset {config.id} names a task that meta/tasks.parquet does not have")
        return columns

    def check_numbers(self) -> None:
        chosen = set(self.episodes)
        for what, table in (("state", self.state), ("action", self.actions)):
            for index in (~torch.isfinite(table).all(dim=1)).nonzero().flatten().tolist():
                if self.episode_of(index) in chosen:
                    raise UserError(
                        f"the {what} of {self.id} is not finite at {self.name(index)}: "
                        "mend it, or leave the episode out by datasets.episodes"
                    )

    def __len__(self) -> int:
        """All frames of the dataset, of the episodes that are not chosen too."""
        return len(self.actions)

    def frame_range(self, episode: int) -> range:
        return range(int(self.starts[episode]), int(self.ends[episode]))

    def episode_of(self, index: int) -> int:
        return int(np.searchsorted(self.ends, index, side="right"))

    def name(self, index: int) -> str:
        episode = self.episode_of(index)
        return f"episode {episode}, frame {index - self.starts[episode]}"

    @property
    def camera_mask(self) -> list[bool]:
        """In the policy's order, which cameras this dataset has."""
        return [key is not None for key in self.camera_keys.values()]

    def sample(self, index: int) -> dict[str, Any]:
        """One frame, in robot units, its pictures by camera, (3, H, W) uint8, black where the camera is missing."""
        episode = self.episode_of(index)
        start, end = index, min(index + self.chunk_size, int(self.ends[episode]))
        missing = self.chunk_size - (end - start)
        actions = self.actions[start:end]  # (steps that exist, A)
        return {
            "images": {camera: self.read_image(camera, index, episode) for camera in self.camera_keys},
            "state": self.state[index],
            "actions": torch.cat([actions, actions[-1:].expand(missing, -1)]),
            "action_is_pad": torch.arange(self.chunk_size) >= end - start,
            "task": self.tasks[int(self.task_indices[index])],
            "episode_index": episode,
            "frame_index": index - int(self.starts[episode]),
            "index": index,
        }

    def read_image(self, camera: str, index: int, episode: int) -> Tensor:
        key = self.camera_keys[camera]
        if key is None:
            return torch.zeros(3, *self.camera_sizes[camera], dtype=torch.uint8)
        try:
            picture = self.sources[key].read(index, episode)
        except (ValueError, OSError) as error:
            raise UserError(
                f"the picture of camera {camera!r} of {self.id} at {self.name(index)} cannot be read: {error}"
            ) from error
        if picture.shape[1:] != self.camera_sizes[camera]:
            raise UserError(
                f"the picture of camera {camera!r} of {self.id} at {self.name(index)} is "
                f"{tuple(picture.shape[1:])}, meta/info.json says {self.camera_sizes[camera]}"
            )
        return picture

    def kept(self, camera: str) -> InMemoryImageReader:
        """The pictures of one camera in the chosen episodes; read in order, which is many times faster."""
        frames = [index for episode in self.episodes for index in self.frame_range(episode)]
        pixels = torch.empty(len(frames), 3, *self.camera_sizes[camera], dtype=torch.uint8)
        rows = torch.zeros(len(self), dtype=torch.long)
        rows[frames] = torch.arange(len(frames))
        for row, index in enumerate(tqdm(frames, desc=f"reading {camera}", unit="", leave=False, disable=None)):
            pixels[row] = self.read_image(camera, index, self.episode_of(index))
        return InMemoryImageReader(pixels, rows)

    def read_images(self, indices: Sequence[int]) -> list[Tensor]:
        """Of several frames, by camera in the policy's order: (n, 3, H, W) uint8. In order they are read fastest."""
        return [
            torch.stack([self.read_image(camera, index, self.episode_of(index)) for index in indices])
            for camera in self.camera_keys
        ]


def check_frames(files: DatasetFiles, index: np.ndarray, episode_index: np.ndarray) -> None:
    """That the rows of the data files are the frames of the episodes, in order."""
    episodes = np.repeat(np.arange(len(files.lengths)), files.lengths)
    if not (np.array_equal(index, np.arange(len(episodes))) and np.array_equal(episode_index, episodes)):
        raise UserError(
            f"the dataset {files.id} is incomplete or out of order: its data files do not hold the "
            f"{len(episodes)} frames that meta/episodes names"
        )


def open_sources(
    files: DatasetFiles,
    revision: str,
    keys: Sequence[str],
    episodes: Sequence[int],
    timestamps: np.ndarray,
    streaming: bool = False,
) -> dict[str, ImageReader]:
    """Where the pictures of each camera come from. The videos of these episodes are downloaded, or streamed. (ImageReader
    that are stored in the tables came with them.)"""
    stored = [key for key in keys if key in files.meta.image_keys]
    arrow_files = arrow_cache(files, stored) if stored else []
    sources: dict[str, ImageReader] = {key: ArrowImageReader(arrow_files, key) for key in stored}
    shared = torch.from_numpy(np.array(timestamps))
    for key in keys:
        if key in files.meta.video_keys:
            names, file_of_episode = files.video_files(key)
            if streaming and revision != LOCAL:
                places = [files.address(name, revision) for name in names]
            else:
                used = sorted(set(file_of_episode[list(episodes)].tolist()))
                require_videos(files, revision, [names[number] for number in used])
                places = [str(files.root / name) for name in names]
            starts = files.episode_column(f"videos/{key}/from_timestamp")
            sources[key] = VideoImageReader(places, file_of_episode, starts, shared)
    return sources


def require_videos(files: DatasetFiles, revision: str, names: Sequence[str]) -> None:
    missing = [name for name in names if not (files.root / name).is_file()]
    if missing and revision != LOCAL:
        download(f"{files.id.partition('@')[0]}@{revision}", missing)
    for name in missing:
        if not (files.root / name).is_file():
            raise UserError(f"the dataset {files.id} lacks the video {name}: copy or record it again")


def chosen_episodes(config: DatasetConfig, count: int) -> list[int]:
    if config.episodes is None:
        return list(range(count))
    if not config.episodes:
        raise UserError(f"datasets.episodes of {config.id} is empty: leave it out to use all {count}")
    for episode in config.episodes:
        if not 0 <= episode < count:
            raise UserError(f"the dataset {config.id} has no episode {episode}: it has 0..{count - 1}")
    return sorted(set(config.episodes))


def match_cameras(config: DatasetConfig, cameras: list[str], keys: list[str]) -> dict[str, str | None]:
    """The dataset's key of each camera of the policy, in the policy's order: as the recipe says, else by name, and if
    no name fits, in order. A camera that is absent must be said to be so."""
    for camera, wanted in config.cameras.items():
        if camera not in cameras:
            raise UserError(f"datasets.cameras of {config.id}: no camera {camera!r}: {nearest(camera, cameras)}")
        if wanted != ABSENT and wanted not in keys:
            raise UserError(f"the dataset {config.id} has no camera {wanted!r}: {nearest(wanted, keys)}")
    by_name = {camera_name(key): key for key in keys}
    matched = {camera: config.cameras.get(camera, by_name.get(camera)) for camera in cameras}
    if not any(matched.values()) and not config.cameras and len(keys) == len(cameras):
        matched = dict(zip(cameras, keys, strict=True))
    for camera, key in matched.items():
        if key is None:
            raise UserError(
                f"the dataset {config.id} has no camera {camera!r}, which the policy sees: {nearest(camera, keys)} "
                f'Write datasets.cameras: {{{camera}: KEY}}, or {{{camera}: ""}} if it is absent'
            )
    if not any(matched.values()):
        raise UserError(f"every camera of {config.id} is absent: name at least one of {', '.join(keys) or 'none'}")
    return {camera: key or None for camera, key in matched.items()}


def camera_name(key: str) -> str:
    """The short name of a dataset's camera."""
    return key.removeprefix("observation.").removeprefix("images.")


def camera_sizes(files: DatasetFiles, camera_keys: dict[str, str | None]) -> dict[str, tuple[int, int]]:
    """Height and width of each camera; an absent one is as large as the first that is there."""
    known = color_cameras(files.meta)
    sizes = {camera: known[key] for camera, key in camera_keys.items() if key}
    first = next(iter(sizes.values()))
    return {camera: sizes.get(camera, first) for camera in camera_keys}


def vectors(config: DatasetConfig, column: np.ndarray, dim: int, what: str) -> Tensor:
    """(frames, dim) float32."""
    table = column.reshape(len(column), -1)
    if table.shape[1] != dim:
        raise UserError(
            f"the {what} of {config.id} has {table.shape[1]} dimensions, the policy was made for {what}_dim={dim}"
        )
    return torch.from_numpy(table.astype(np.float32))


def arrow_cache(files: DatasetFiles, keys: list[str]) -> list[str]:
    """Files of the pictures alone that can be mapped into memory; made once, in the cache of `datasets`."""
    from datasets import Dataset
    from lerobot.utils.utils import SuppressProgressBars

    with SuppressProgressBars():
        table = Dataset.from_parquet([str(file) for file in files.data_files()], columns=keys)
    return [entry["filename"] for entry in table.cache_files]
