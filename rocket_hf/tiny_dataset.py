"""Small synthetic LeRobot dataset, written by lerobot's own writer, for demos, tests and benchmarks.

A blue square (the hand) follows a red disc (the goal) over a shaded background. The state contains the position of the
hand, only the images show that of the goal, and the action is a linear function of both. It can be learned, but not
from the state alone.
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
HAND_SPEED = 0.2  # fraction of the distance to the goal that the hand moves in one step
GOAL_COLOR, HAND_COLOR = (220, 40, 30), (30, 60, 220)
SHAPE_SIZE = 0.12  # relative to the image height


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
    noise: int = 0,
) -> Path:
    """Write a dataset and return its folder.

    Args:
        folder: Folder to create; it must not exist.
        episodes: Number of episodes.
        frames: Frames of an episode; every second episode has a quarter more.
        cameras: Height and width of each camera's images.
        state_dim: Length of the state.
        action_dim: Length of the action.
        video: Whether to store the images as lossy video instead of PNG in the parquet files.
        seed: Seed of all random numbers.
        tasks: Tasks, used in turn.
        codec: Video codec by lerobot's name.
        noise: Largest change of the background's brightness from pixel to pixel. It makes the images as large as those
            of a real camera.
    """
    from lerobot.configs import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    folder = Path(folder)
    dataset = LeRobotDataset.create(
        repo_id=f"local/{folder.name}",
        root=folder,
        fps=FPS,
        features=dataset_features(cameras, state_dim, action_dim, video),
        use_videos=video,
        streaming_encoding=video,
        rgb_encoder=RGBEncoderConfig(vcodec=codec) if video else None,
        video_backend="pyav",  # only for reading, which does not happen here
    )
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(action_dim, 2 + state_dim)) / 2
    with quiet_encoders():
        for number in range(episodes):
            length = frames + frames // 4 * (number % 2)
            for frame in episode_frames(random, length, cameras, mixing, state_dim, noise):
                dataset.add_frame(frame | {"task": tasks[number % len(tasks)]})
            dataset.save_episode(parallel_encoding=False)
        dataset.finalize()
    return folder


@contextlib.contextmanager
def quiet_encoders() -> Iterator[None]:
    """Silence the log output of video encoders and the progress bars of small tables."""
    import av
    from lerobot.utils.utils import SuppressProgressBars

    av.logging.set_libav_level(av.logging.ERROR)
    os.environ.setdefault("SVT_LOG", "1")  # only errors
    try:
        with SuppressProgressBars():
            yield
    finally:
        av.logging.set_libav_level(av.logging.INFO)  # libav's default


def dataset_features(
    cameras: Mapping[str, tuple[int, int]], state_dim: int, action_dim: int, video: bool
) -> dict[str, Any]:
    """Return the description of the dataset's columns in lerobot's format."""
    images = {
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
    return images | vectors


def episode_frames(
    random: np.random.Generator,
    length: int,
    cameras: Mapping[str, tuple[int, int]],
    mixing: np.ndarray,
    state_dim: int,
    noise: int,
) -> Iterator[dict[str, Any]]:
    """Yield the frames of one episode, in which the goal moves on a figure eight and the hand follows it."""
    start, speed, hand = random.uniform(0, 2 * np.pi), random.uniform(0.1, 0.3), random.uniform(0.2, 0.8, size=2)
    for step in range(length):
        angle = start + speed * step
        goal = 0.5 + 0.3 * np.array([np.cos(angle), np.sin(2 * angle)])
        state = np.resize([*hand, hand[0] * hand[1], *(1 - hand)], state_dim)
        images = {
            f"observation.images.{name}": render_image(goal, hand, size, number, noise)
            for number, (name, size) in enumerate(cameras.items())
        }
        action = mixing @ np.concatenate([goal - hand, state])
        yield images | {"observation.state": state.astype(np.float32), "action": action.astype(np.float32)}
        hand = hand + HAND_SPEED * (goal - hand)


def render_image(goal: np.ndarray, hand: np.ndarray, size: tuple[int, int], camera: int, noise: int = 0) -> np.ndarray:
    """Render an image (height, width, 3) uint8.

    Positions are (x, y) in [0, 1]. Every second camera mirrors the scene.
    """
    height, width = size
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    x = 1 - x if camera % 2 else x
    pixels = np.stack([90 + 60 * x, 120 + 60 * y, np.full_like(x, 110)], axis=-1)
    pixels += np.random.default_rng(camera).integers(-noise, noise + 1, size=(height, width, 1))
    pixels[np.hypot(x - goal[0], y - goal[1]) < SHAPE_SIZE] = GOAL_COLOR
    pixels[np.maximum(abs(x - hand[0]), abs(y - hand[1])) < SHAPE_SIZE / 2] = HAND_COLOR
    return pixels.astype(np.uint8)
