"""Generated recordings of a six-joint arm like SO-101, in degrees, with the names that lerobot gives its joints."""

import itertools
from pathlib import Path

import numpy as np

ARM_JOINTS = [
    f"{joint}.pos" for joint in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
]
CENTERS, AMPLITUDES = np.array([0, -20, 30, 45, 0, 50.0]), np.array([40, 20, 25, 15, 30, 40.0])
FPS = 30


def arm_states(episode: int, frames: int) -> np.ndarray:
    """Return the joint positions of an episode, (frames, 6): a smooth sweep from a start that differs per episode."""
    phase = np.arange(frames)[:, None] / frames * np.pi + 0.4 * episode + np.arange(6)
    return CENTERS + AMPLITUDES * np.sin(phase)


def write_arm_dataset(folder: Path, episodes: int = 4, frames: int = 24, size: tuple[int, int] = (48, 64)) -> Path:
    """Record a dataset with cameras front and wrist; an action is the position of the next frame, as a leader arm's."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    vector = {"dtype": "float32", "shape": (6,), "names": ARM_JOINTS}
    image = {"dtype": "image", "shape": (*size, 3), "names": ["height", "width", "channels"]}
    features = {
        "observation.state": vector,
        "action": vector,
        "observation.images.front": image,
        "observation.images.wrist": image,
    }
    dataset = LeRobotDataset.create(f"local/{folder.name}", FPS, features, root=folder, use_videos=False)
    for episode in range(episodes):
        states = arm_states(episode, frames + 1)
        for state, following in itertools.pairwise(states):
            dataset.add_frame(
                {
                    "observation.state": state.astype(np.float32),
                    "action": following.astype(np.float32),
                    "observation.images.front": draw_gauge(state[:3], size),
                    "observation.images.wrist": draw_gauge(state[3:], size),
                    "task": "pick up the cube",
                }
            )
        dataset.save_episode(parallel_encoding=False)
    dataset.finalize()
    return folder


def draw_gauge(positions: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Draw three joint positions as bars in the three color channels, (height, width, 3) uint8."""
    columns = np.linspace(-90, 90, size[1])
    bars = (columns[:, None] < positions) * np.uint8(200)
    return np.broadcast_to(bars, (*size, 3)).astype(np.uint8)


def write_joint_dataset(
    folder: Path, fps: int, names: list[str], episodes: list[tuple[np.ndarray, np.ndarray]]
) -> Path:
    """Record a dataset from the states and actions of each episode, both (frames, joints) with the same names.

    Its camera front is gray, as bright as the number of the frame in the dataset.
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    vector = {"dtype": "float32", "shape": (len(names),), "names": names}
    image = {"dtype": "image", "shape": (24, 32, 3), "names": ["height", "width", "channels"]}
    features = {"observation.state": vector, "action": vector, "observation.images.front": image}
    dataset = LeRobotDataset.create(f"local/{folder.name}", fps, features, root=folder, use_videos=False)
    number = 0
    for states, actions in episodes:
        for state, action in zip(states.astype(np.float32), actions.astype(np.float32), strict=True):
            frame = {"observation.state": state, "action": action, "task": "pick up the cube"}
            dataset.add_frame(frame | {"observation.images.front": np.full((24, 32, 3), number, np.uint8)})
            number += 1
        dataset.save_episode(parallel_encoding=False)
    dataset.finalize()
    return folder


def sweeping_joints(joints: int, frames: int, fps: int, first: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return states and actions of an episode, (frames, joints): joints at constant speeds, actions a frame ahead."""
    times = np.arange(frames + 1)[:, None] / fps
    positions = first + 10 * np.arange(joints) + times * (1 + np.arange(joints))
    return positions[:-1], positions[1:]
