"""Reader of LeRobot datasets that were recorded with depth: images, depth and camera poses of each frame.

It reads the files without lerobot, whose import takes longer than reading a thousand frames. Reading forwards is
fastest, because a jump costs a seek in each video.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from .errors import UserError
from .foreign_code import check_no_foreign_code
from .video_cursor import VideoCursor

DEPTH_LEVELS = 4096  # lerobot's depth videos have twelve bits
DEPTH_SUFFIX = "_depth"


@dataclass(frozen=True)
class RgbdFrame:
    """One frame with V cameras. Camera axes: z forward, x to the right, y down; pixel centers are at integers."""

    images: Tensor  # (V, 3, H, W) uint8
    depth: Tensor  # (V, H, W) float32, meters along the optical axis
    intrinsics: Tensor  # (V, 3, 3) float32
    poses: Tensor  # (V, 4, 4) float32, camera to world
    task: str
    episode: int


class RgbdFrames:
    """Frames of a recording. `frames[index]` uses lerobot's index; `episodes` and `tasks` have one entry per frame."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.info = read_info(self.folder)
        names = [name for name, column in self.info["features"].items() if is_depth(column)]
        if not names:
            raise UserError(f"{folder} contains no depth: record it with `rocket-hf simulate ... --depth`")
        self.cameras = tuple(name.removeprefix("observation.images.").removesuffix(DEPTH_SUFFIX) for name in names)
        table = read_tables(self.folder, "data/*/*.parquet")
        self.episodes = table["episode_index"].to_numpy()  # (frames,)
        tasks = read_tables(self.folder, "meta/tasks.parquet").to_pydict()
        task_by_index = dict(zip(tasks["task_index"], tasks["task"], strict=True))
        self.tasks = [task_by_index[number] for number in table["task_index"].to_pylist()]
        states = np.stack(table["observation.state"].to_numpy())
        self.states = torch.from_numpy(states.astype(np.float32))  # (frames, state_dim)
        self.intrinsics = read_camera_matrices(table, self.cameras, "intrinsics", (3, 3))  # (frames, V, 3, 3)
        self.poses = read_camera_matrices(table, self.cameras, "pose", (4, 4))  # (frames, V, 4, 4)
        self.episode_table = read_tables(self.folder, "meta/episodes/*/*.parquet").to_pydict()
        self.check_episode_table()
        self.depth_scales = {
            camera: depth_scale(self.info["features"][image_key(camera, DEPTH_SUFFIX)]["info"])
            for camera in self.cameras
        }
        self.cursors: dict[tuple[str, int, int], VideoCursor] = {}

    def check_episode_table(self) -> None:
        """Raise UserError if the table of episodes does not give the video file of each frame."""
        keys = [image_key(camera, suffix) for camera in self.cameras for suffix in ("", DEPTH_SUFFIX)]
        parts = ("chunk_index", "file_index", "from_timestamp")
        for name in ("dataset_from_index", *(f"videos/{key}/{part}" for key in keys for part in parts)):
            values = self.episode_table.get(name, [])
            numbers = [value for value in values if isinstance(value, int | float)]
            if not len(numbers) == len(values) > max(self.episodes, default=-1):
                raise UserError(
                    f"meta/episodes of {self.folder} does not give {name} for each episode: record the dataset again"
                )

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, index: int) -> RgbdFrame:
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        images = [self.read_image(image_key(camera), index, "rgb24") for camera in self.cameras]
        depths = [self.read_depth(camera, index) for camera in self.cameras]
        return RgbdFrame(
            torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
            torch.from_numpy(np.stack(depths)),
            self.intrinsics[index],
            self.poses[index],
            self.tasks[index],
            int(self.episodes[index]),
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"cursors": {}}  # Each process opens the videos itself.

    def read_depth(self, camera: str, index: int) -> np.ndarray:
        """Return the depth of one camera in meters, (H, W) float32."""
        return self.depth_scales[camera][self.read_image(image_key(camera, DEPTH_SUFFIX), index, "gray12le")]

    def read_image(self, key: str, index: int, pixel_format: str) -> np.ndarray:
        """Read one camera's image from the video file that contains the frame's episode."""
        episode = int(self.episodes[index])
        chunk, file = (self.episode_table[f"videos/{key}/{part}_index"][episode] for part in ("chunk", "file"))
        if (key, chunk, file) not in self.cursors:
            name = self.info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)
            self.cursors[key, chunk, file] = VideoCursor(self.folder / name, self.info["fps"], pixel_format)
        start = round(self.episode_table[f"videos/{key}/from_timestamp"][episode] * self.info["fps"])
        return self.cursors[key, chunk, file].frame(start + index - self.episode_table["dataset_from_index"][episode])


def image_key(camera: str, suffix: str = "") -> str:
    return f"observation.images.{camera}{suffix}"


def read_info(folder: Path) -> dict[str, Any]:
    path = folder / "meta" / "info.json"
    check_no_foreign_code(folder)
    if not path.is_file():
        raise UserError(f"{folder} is not a LeRobot dataset: it has no meta/info.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): record the dataset again") from error


def is_depth(column: dict[str, Any]) -> bool:
    return bool((column.get("info") or {}).get("is_depth_map"))


def read_tables(folder: Path, pattern: str) -> pa.Table:
    """Read and concatenate all parquet files that match the pattern."""
    try:
        return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob(pattern))])
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{folder} is incomplete or damaged, {pattern} cannot be read: record it again") from error


def read_camera_matrices(table: pa.Table, cameras: tuple[str, ...], name: str, shape: tuple[int, int]) -> Tensor:
    """Return the matrices of all cameras: (frames, V, *shape)."""
    for camera in cameras:
        if f"camera.{camera}.{name}" not in table.column_names:
            raise UserError(
                f"the depth of {camera} has no {name}, the column camera.{camera}.{name}: record the dataset with "
                "`rocket-hf simulate ... --depth`"
            )
    columns = [np.stack(table[f"camera.{camera}.{name}"].to_numpy()).reshape(-1, *shape) for camera in cameras]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))


def depth_scale(info: dict[str, Any]) -> np.ndarray:
    """Return the depth in meters of each level of lerobot's logarithmic scale: (4096,) float32."""
    if not info["video.use_log"]:
        raise UserError("the depth of this dataset is not logarithmic: record it with `rocket-hf simulate ... --depth`")
    near, far, shift = (info[f"video.{name}"] for name in ("depth_min", "depth_max", "shift"))
    logarithms = np.linspace(math.log(near + shift), math.log(far + shift), DEPTH_LEVELS)
    return (np.exp(logarithms) - shift).astype(np.float32)
