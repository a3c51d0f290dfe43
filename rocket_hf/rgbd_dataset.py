"""The pictures, depths and camera poses of a dataset that was recorded with depth, frame by frame.

It reads lerobot's files without lerobot, whose import takes longer than a thousand frames. Reading forwards is fastest:
a jump costs a seek.
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
from .video_cursor import VideoCursor

STEPS = 4096  # lerobot's depth videos have twelve bits
DEPTH = "_depth"


@dataclass(frozen=True)
class Rgbd:
    """Of one moment. V cameras; each looks along its +z with x to the right and y down, pixel centers at whole
    numbers."""

    images: Tensor  # (V, 3, H, W) uint8
    depth: Tensor  # (V, H, W) float32, meters along the optical axis
    intrinsics: Tensor  # (V, 3, 3) float32
    poses: Tensor  # (V, 4, 4) float32, camera to world
    task: str
    episode: int


class RgbdFrames:
    """`frames[index]` by lerobot's index; `episodes` and `tasks` say where each frame is from."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.info = read_info(self.folder)
        names = [name for name, column in self.info["features"].items() if is_depth(column)]
        if not names:
            raise UserError(f"{folder} holds no depth: record it with `rocket-hf simulate ... --depth`")
        self.cameras = tuple(name.removeprefix("observation.images.").removesuffix(DEPTH) for name in names)
        table = read_tables(self.folder, "data/*/*.parquet")
        self.episodes = table["episode_index"].to_numpy()  # (frames,)
        tasks = pq.read_table(self.folder / "meta" / "tasks.parquet").to_pydict()
        by_number = dict(zip(tasks["task_index"], tasks["task"], strict=True))
        self.tasks = [by_number[number] for number in table["task_index"].to_pylist()]
        states = np.stack(table["observation.state"].to_numpy())
        self.states = torch.from_numpy(states.astype(np.float32))  # (frames, numbers of the robot's state)
        self.intrinsics = stacked(table, self.cameras, "intrinsics", (3, 3))  # (frames, V, 3, 3)
        self.poses = stacked(table, self.cameras, "pose", (4, 4))  # (frames, V, 4, 4)
        self.places = read_tables(self.folder, "meta/episodes/*/*.parquet").to_pydict()
        self.meters = {
            camera: depth_scale(self.info["features"][picture(camera, DEPTH)]["info"]) for camera in self.cameras
        }
        self.cursors: dict[tuple[str, int, int], VideoCursor] = {}

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, index: int) -> Rgbd:
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        colors = [self.read(picture(camera), index, "rgb24") for camera in self.cameras]
        depths = [self.meters[camera][self.read(picture(camera, DEPTH), index, "gray12le")] for camera in self.cameras]
        return Rgbd(
            torch.from_numpy(np.stack(colors)).permute(0, 3, 1, 2).contiguous(),
            torch.from_numpy(np.stack(depths)),
            self.intrinsics[index],
            self.poses[index],
            self.tasks[index],
            int(self.episodes[index]),
        )

    def read(self, key: str, index: int, pixels: str) -> np.ndarray:
        """One camera's picture, from the video file in which its episode lies."""
        episode = int(self.episodes[index])
        chunk, file = (self.places[f"videos/{key}/{part}_index"][episode] for part in ("chunk", "file"))
        if (key, chunk, file) not in self.cursors:
            name = self.info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)
            self.cursors[key, chunk, file] = VideoCursor(self.folder / name, self.info["fps"], pixels)
        start = round(self.places[f"videos/{key}/from_timestamp"][episode] * self.info["fps"])
        return self.cursors[key, chunk, file].frame(start + index - self.places["dataset_from_index"][episode])


def picture(camera: str, suffix: str = "") -> str:
    return f"observation.images.{camera}{suffix}"


def read_info(folder: Path) -> dict[str, Any]:
    if not (folder / "meta" / "info.json").is_file():
        raise UserError(f"{folder} is no LeRobot dataset: it has no meta/info.json")
    return json.loads((folder / "meta" / "info.json").read_text(encoding="utf-8"))


def is_depth(column: dict[str, Any]) -> bool:
    return bool((column.get("info") or {}).get("is_depth_map"))


def read_tables(folder: Path, pattern: str) -> pa.Table:
    try:
        return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob(pattern))])
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{folder} cannot be read: it was cut off while it was written, record it again") from error


def stacked(table: pa.Table, cameras: tuple[str, ...], what: str, shape: tuple[int, int]) -> Tensor:
    """(frames, V, *shape)"""
    columns = [np.stack(table[f"camera.{camera}.{what}"].to_numpy()).reshape(-1, *shape) for camera in cameras]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))


def depth_scale(info: dict[str, Any]) -> np.ndarray:
    """(4096,) float32: the meters that each step of lerobot's logarithmic scale stands for."""
    assert info["video.use_log"], "our recordings are logarithmic"
    near, far, shift = (info[f"video.{name}"] for name in ("depth_min", "depth_max", "shift"))
    steps = np.linspace(math.log(near + shift), math.log(far + shift), STEPS)
    return (np.exp(steps) - shift).astype(np.float32)
