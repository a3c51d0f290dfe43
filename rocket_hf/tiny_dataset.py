"""A small LeRobot dataset made without a download, through lerobot's own writer. For demos, tests and benchmarks.

A blue square, the hand, follows a red disc, the goal, over a shaded ground. The state tells where the hand is, only the
pictures tell where the goal is, and the action is a linear function of both: it can be learnt, but not from the state
alone.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

CAMERAS = {"front": (48, 64), "wrist": (32, 32)}  # height, width
TASKS = ("follow the red disc", "push the blue square")
FPS = 10
PURSUIT = 0.2  # the part of the way to the goal that the hand goes in one step
GOAL_COLOR, HAND_COLOR = (220, 40, 30), (30, 60, 220)
SHAPE_SIZE = 0.12  # of a picture's height


def write_tiny_dataset(
    folder: str | Path,
    episodes: int = 4,
    frames: int = 12,
    cameras: Mapping[str, tuple[int, int]] = CAMERAS,
    state_dim: int = 6,
    action_dim: int = 5,
    video: bool = False,
    seed: int = 0,
    tasks: Sequence[str] = TASKS,
    codec: str = "h264",
    grain: int = 0,
) -> Path:
    """A folder that must not exist yet. Episodes have `frames` frames, every second one a few more, and the tasks take
    turns. Pictures are PNG in the parquet files, or lossy video (`codec` as lerobot names them); `grain` is how far the
    ground's brightness varies from pixel to pixel, which makes them as large as a real camera's."""
    from lerobot.configs import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    folder = Path(folder)
    dataset = LeRobotDataset.create(
        repo_id=f"local/{folder.name}",
        root=folder,
        fps=FPS,
        features=features(cameras, state_dim, action_dim, video),
        use_videos=video,
        streaming_encoding=video,
        rgb_encoder=RGBEncoderConfig(vcodec=codec) if video else None,
        video_backend="pyav",  # of a reader; nothing is read here
    )
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(action_dim, 2 + state_dim)) / 2
    with quiet_encoders():
        for number in range(episodes):
            length = frames + frames // 4 * (number % 2)
            for frame in episode(random, length, cameras, mixing, state_dim, grain):
                dataset.add_frame(frame | {"task": tasks[number % len(tasks)]})
            dataset.save_episode(parallel_encoding=False)
        dataset.finalize()
    return folder


@contextlib.contextmanager
def quiet_encoders() -> Iterator[None]:
    """Without the encoders' own reports and the progress bars of tables of ten rows."""
    import av
    from lerobot.utils.utils import SuppressProgressBars

    av.logging.set_libav_level(av.logging.ERROR)
    os.environ.setdefault("SVT_LOG", "1")  # errors alone
    try:
        with SuppressProgressBars():
            yield
    finally:
        av.logging.set_libav_level(av.logging.INFO)  # as it was: libav's default


def features(cameras: Mapping[str, tuple[int, int]], state_dim: int, action_dim: int, video: bool) -> dict[str, Any]:
    """As lerobot describes columns."""
    pictures = {
        f"observation.images.{name}": {
            "dtype": "video" if video else "image",
            "shape": (height, width, 3),
            "names": ["height", "width", "channels"],
        }
        for name, (height, width) in cameras.items()
    }
    vectors = {
        key: {"dtype": "float32", "shape": (dim,), "names": [f"{letter}{index}" for index in range(dim)]}
        for key, letter, dim in (("observation.state", "s", state_dim), ("action", "a", action_dim))
    }
    return pictures | vectors


def episode(
    random: np.random.Generator,
    length: int,
    cameras: Mapping[str, tuple[int, int]],
    mixing: np.ndarray,
    state_dim: int,
    grain: int,
) -> Iterator[dict[str, Any]]:
    """The frames of one episode: the goal goes round an ellipse and the hand comes after it."""
    start, speed, hand = random.uniform(0, 2 * np.pi), random.uniform(0.1, 0.3), random.uniform(0.2, 0.8, size=2)
    for step in range(length):
        angle = start + speed * step
        goal = 0.5 + 0.3 * np.array([np.cos(angle), np.sin(2 * angle)])
        state = np.resize([*hand, hand[0] * hand[1], *(1 - hand)], state_dim)
        pictures = {
            f"observation.images.{name}": picture(goal, hand, size, number, grain)
            for number, (name, size) in enumerate(cameras.items())
        }
        action = mixing @ np.concatenate([goal - hand, state])
        yield pictures | {"observation.state": state.astype(np.float32), "action": action.astype(np.float32)}
        hand = hand + PURSUIT * (goal - hand)


def picture(goal: np.ndarray, hand: np.ndarray, size: tuple[int, int], camera: int, grain: int = 0) -> np.ndarray:
    """(height, width, 3) uint8. Positions are (x, y) in 0..1; every other camera sees the scene mirrored."""
    height, width = size
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    x = 1 - x if camera % 2 else x
    pixels = np.stack([90 + 60 * x, 120 + 60 * y, np.full_like(x, 110)], axis=-1)
    pixels += np.random.default_rng(camera).integers(-grain, grain + 1, size=(height, width, 1))
    pixels[np.hypot(x - goal[0], y - goal[1]) < SHAPE_SIZE] = GOAL_COLOR
    pixels[np.maximum(abs(x - hand[0]), abs(y - hand[1])) < SHAPE_SIZE / 2] = HAND_COLOR
    return pixels.astype(np.uint8)
