"""LeRobot dataset (v3), from a folder or the Hub, as samples for a policy: images, state and action chunks.

States and actions of all frames are kept in memory and a chunk is a slice of them; only the images of the sampled frame
are decoded. (Reading the table once per step of a chunk would decode the images of all its steps.)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from tqdm import tqdm

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.strict_config import suggest_name
from rocket_hf.teachers.cache_manifest import LOCAL
from rocket_hf.teachers.dataset_identity import color_cameras, dataset_fingerprint

from ..recipe import DatasetConfig
from .image_resizer import ImageResizer
from .images import ArrowImageReader, ImageReader, InMemoryImageReader, VideoImageReader
from .lerobot_files import (
    DatasetFiles,
    download_files,
    first_line,
    locate_dataset,
    read_columns,
    read_dataset_files,
)

ABSENT_CAMERA = ""  # value in a recipe for a camera that the dataset does not have


class RobotDataset:
    """Samples of a dataset for a policy.

    Frames are identified by lerobot's `index`, their index in the whole dataset, even if only some episodes are used.
    """

    def __init__(
        self,
        config: DatasetConfig,
        policy: RocketConfig,
        streaming: bool = False,
        in_memory: bool = False,
        resizer: ImageResizer | None = None,
    ):
        """Open a dataset.

        `streaming` fetches frames of videos on the Hub on access instead of downloading the videos; `in_memory` decodes
        all images once, now; `resizer` resizes large images when they are read.
        """
        root, self.revision = locate_dataset(config.id)
        files = read_dataset_files(config.id, root)
        self.id = root.resolve().name if self.revision == LOCAL else config.id.partition("@")[0]
        self.fingerprint = dataset_fingerprint(files.meta)
        self.fps, self.tasks = files.meta.fps, files.tasks
        self.state_names, self.action_names = files.vector_names(config.state), files.vector_names(config.action)
        self.ends = np.cumsum(files.lengths)
        self.starts = self.ends - files.lengths
        self.episodes = select_episodes(config, len(files.lengths))
        self.chunk_size = policy.chunk_size

        self.camera_keys = match_cameras(config, list(policy.cameras), files.camera_keys())
        self.camera_sizes = camera_sizes(files, self.camera_keys)
        self.resizer = resizer
        self.image_sizes = self.camera_sizes  # of the images that `sample` returns
        if resizer is not None:
            self.image_sizes = {camera: resizer.target_size(size) for camera, size in self.camera_sizes.items()}
        columns = read_sample_columns(config, files)
        self.state = to_vectors(config, columns[config.state], policy.state_dim, "state")
        self.actions = to_vectors(config, columns[config.action], policy.action_dim, "action")
        self.task_indices = torch.from_numpy(columns["task_index"].astype(np.int32))
        self.check_finite()
        keys = [key for key in self.camera_keys.values() if key]
        self.image_readers = open_image_readers(
            files, self.revision, keys, self.episodes, columns["timestamp"], streaming
        )
        if in_memory:
            self.image_readers = {key: self.load_images(camera) for camera, key in self.camera_keys.items() if key}

    def check_finite(self) -> None:
        selected = set(self.episodes)
        for name, table in (("state", self.state), ("action", self.actions)):
            for index in (~torch.isfinite(table).all(dim=1)).nonzero().flatten().tolist():
                if self.episode_of_frame(index) in selected:
                    raise UserError(
                        f"the {name} of {self.id} is not finite at {self.describe_frame(index)}: correct the dataset, "
                        "or leave this episode out of data.datasets.0.episodes"
                    )

    def __len__(self) -> int:
        """Return the number of frames of the dataset, including those of episodes that are not selected."""
        return len(self.actions)

    def frame_range(self, episode: int) -> range:
        return range(int(self.starts[episode]), int(self.ends[episode]))

    def episode_of_frame(self, index: int) -> int:
        return int(np.searchsorted(self.ends, index, side="right"))

    def describe_frame(self, index: int) -> str:
        episode = self.episode_of_frame(index)
        return f"episode {episode}, frame {index - self.starts[episode]}"

    @property
    def camera_mask(self) -> list[bool]:
        """Presence of each camera of the policy in this dataset, in the policy's order."""
        return [key is not None for key in self.camera_keys.values()]

    def sample(self, index: int) -> dict[str, Any]:
        """Return one frame in robot units.

        Its images, by camera, are (3, H, W) uint8 of `image_sizes`, black for missing cameras.
        """
        episode = self.episode_of_frame(index)
        actions = self.future_actions(index)
        padding = self.chunk_size - len(actions)
        return {
            "images": {camera: self.read_image(camera, index, episode) for camera in self.camera_keys},
            "state": self.state[index],
            "actions": torch.cat([actions, actions[-1:].expand(padding, -1)]),
            "action_is_pad": torch.arange(self.chunk_size) >= len(actions),
            "task": self.tasks[int(self.task_indices[index])],
            "episode_index": episode,
            "frame_index": index - int(self.starts[episode]),
            "index": index,
        }

    def future_actions(self, index: int) -> Tensor:
        """Return the actions of the chunk at a frame that lie before the end of its episode, (steps, A)."""
        return self.actions[index : min(index + self.chunk_size, int(self.ends[self.episode_of_frame(index)]))]

    def read_image(self, camera: str, index: int, episode: int) -> Tensor:
        key = self.camera_keys[camera]
        if key is None:
            return torch.zeros(3, *self.image_sizes[camera], dtype=torch.uint8)
        reader = self.image_readers[key]
        if isinstance(reader, InMemoryImageReader):
            return reader.read(index, episode)
        image = self.decode_image(reader, camera, index, episode)
        return image if self.resizer is None else self.resizer(image)

    def decode_image(self, reader: ImageReader, camera: str, index: int, episode: int) -> Tensor:
        """Return an image in the size of the camera."""
        try:
            image = reader.read(index, episode)
        except UserError as error:
            raise UserError(
                f"the image of camera {camera!r} of {self.id} at {self.describe_frame(index)} cannot be read: {error}"
            ) from error
        if image.shape[1:] != self.camera_sizes[camera]:
            (height, width), (rows, columns) = self.camera_sizes[camera], image.shape[1:]
            raise UserError(
                f"the image of camera {camera!r} of {self.id} at {self.describe_frame(index)} has {rows}x{columns} "
                f"pixels, but meta/info.json states {height}x{width}: record the dataset again"
            )
        return image

    def load_images(self, camera: str) -> InMemoryImageReader:
        """Decode all images of a camera in the selected episodes, in order, which is many times faster than random."""
        frames = [index for episode in self.episodes for index in self.frame_range(episode)]
        pixels = torch.empty(len(frames), 3, *self.image_sizes[camera], dtype=torch.uint8)
        rows = torch.zeros(len(self), dtype=torch.long)
        rows[frames] = torch.arange(len(frames))
        for row, index in enumerate(tqdm(frames, desc=f"reading {camera}", unit="", leave=False, disable=None)):
            pixels[row] = self.read_image(camera, index, self.episode_of_frame(index))
        return InMemoryImageReader(pixels, rows)

    def read_images(self, indices: Sequence[int]) -> list[Tensor]:
        """Return the images of some frames for each camera, in the policy's order: (n, 3, H, W) uint8.

        Sorted indices are read fastest.
        """
        return [
            torch.stack([self.read_image(camera, index, self.episode_of_frame(index)) for index in indices])
            for camera in self.camera_keys
        ]


def read_sample_columns(config: DatasetConfig, files: DatasetFiles) -> dict[str, np.ndarray]:
    names = ["index", "episode_index", "frame_index", "timestamp", "task_index"]
    columns = read_columns(config.id, files.data_files(), [*dict.fromkeys([config.state, config.action]), *names])
    check_frames(files, columns["index"], columns["episode_index"])
    largest = columns["task_index"].max()
    if largest >= len(files.tasks):
        raise UserError(
            f"the dataset {config.id} has a frame of task {largest}, but meta/tasks.parquet has only "
            f"{len(files.tasks)} tasks: download or record it again"
        )
    return columns


def check_frames(files: DatasetFiles, index: np.ndarray, episode_index: np.ndarray) -> None:
    """Check that the rows of the data files are the frames of all episodes, in order."""
    episodes = np.repeat(np.arange(len(files.lengths)), files.lengths)
    if not (np.array_equal(index, np.arange(len(episodes))) and np.array_equal(episode_index, episodes)):
        raise UserError(
            f"the dataset {files.id} is incomplete or out of order: its data files do not contain the "
            f"{len(episodes)} frames listed in meta/episodes, download or record it again"
        )


def open_image_readers(
    files: DatasetFiles,
    revision: str,
    keys: Sequence[str],
    episodes: Sequence[int],
    timestamps: np.ndarray,
    streaming: bool = False,
) -> dict[str, ImageReader]:
    """Return an image reader for each camera key.

    Videos of the given episodes are downloaded, or streamed. Images stored in the data files were downloaded with them.
    """
    stored_keys = [key for key in keys if key in files.meta.image_keys]
    arrow_files = write_arrow_cache(files, stored_keys) if stored_keys else []
    readers: dict[str, ImageReader] = {key: ArrowImageReader(arrow_files, key) for key in stored_keys}
    shared_timestamps = torch.from_numpy(np.array(timestamps))
    for key in keys:
        if key in files.meta.video_keys:
            names, file_of_episode = files.video_files(key)
            if streaming and revision != LOCAL:
                videos = [files.hub_url(name, revision) for name in names]
            else:
                used = sorted(set(file_of_episode[list(episodes)].tolist()))
                download_missing_videos(files, revision, [names[index] for index in used])
                videos = [str(files.root / name) for name in names]
            starts = files.episode_column(f"videos/{key}/from_timestamp")
            readers[key] = VideoImageReader(videos, file_of_episode, starts, shared_timestamps)
    return readers


def download_missing_videos(files: DatasetFiles, revision: str, names: Sequence[str]) -> None:
    missing = [name for name in names if not (files.root / name).is_file()]
    if missing and revision != LOCAL:
        download_files(f"{files.id.partition('@')[0]}@{revision}", missing)
    for name in missing:
        if not (files.root / name).is_file():
            raise UserError(f"the dataset {files.id} lacks the video {name}: download or record it again")


def write_arrow_cache(files: DatasetFiles, keys: list[str]) -> list[str]:
    """Write the image columns to Arrow files, which can be memory-mapped, in the cache of `datasets`; return the files.

    They are written once and found again later.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetsError
    from lerobot.utils.utils import SuppressProgressBars

    try:
        with SuppressProgressBars():
            table = Dataset.from_parquet([str(file) for file in files.data_files()], columns=keys)
    except (DatasetsError, OSError, pa.ArrowException) as error:
        raise UserError(
            f"the images of the dataset {files.id} cannot be written to the cache of `datasets` (HF_DATASETS_CACHE): "
            f"{first_line(error.__cause__ or error)}"
        ) from error
    return [entry["filename"] for entry in table.cache_files]


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
            raise UserError(f"datasets.cameras of {config.id}: no camera {camera!r}: {suggest_name(camera, cameras)}")
        if key != ABSENT_CAMERA and key not in keys:
            raise UserError(f"the dataset {config.id} has no camera {key!r}: {suggest_name(key, keys)}")
    matched = {camera: mapping.get(camera, by_name.get(camera)) for camera in cameras}
    if not any(matched.values()) and not mapping and len(keys) == len(cameras):
        matched = dict(zip(cameras, keys, strict=True))
    for camera, matched_key in matched.items():
        if matched_key is None:
            raise UserError(
                f"the dataset {config.id} has no camera {camera!r}, which the policy needs: set datasets.cameras to "
                f'{{{camera}: KEY}}, or to {{{camera}: ""}} if it is absent; {suggest_name(camera, keys)}'
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


def to_vectors(config: DatasetConfig, column: np.ndarray, dim: int, name: str) -> Tensor:
    """Return a column as float32 vectors (frames, dim)."""
    table = column.reshape(len(column), -1)
    if table.shape[1] != dim:
        raise UserError(
            f"the {name} of {config.id} has {table.shape[1]} dimensions, the policy was made for {name}_dim={dim}: "
            f"set robot.{name}_dim={table.shape[1]} in the recipe, or adapt the policy with `rocket-hf adapt`"
        )
    return torch.from_numpy(table.astype(np.float32))
