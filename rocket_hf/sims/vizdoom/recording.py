"""Recording of rooms as a LeRobot dataset: for each room some views, then one episode of the bot for each object.

Images and masks are stored as lossless PNG. An interrupted recording is a readable dataset, and the same call resumes
it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rocket_hf.errors import UserError

from ..demonstrations import record_episodes
from ..recording import RecordingProgress
from .episodes import DoomSimulator, episode_requests, room_features
from .maps import make_room
from .world import FPS, require_engine


@dataclass(frozen=True)
class RoomRecordingPlan:
    """All settings that determine the recorded data."""

    suite: str
    rooms: int
    views: int  # per room
    first_seed: int


def record_rooms(folder: Path, rooms: int, views: int, workers: int = 2, first_seed: int = 0) -> RecordingProgress:
    """Record the rooms with the seeds first_seed, first_seed + 1, ..."""
    for name, value in (("rooms", rooms), ("views", views), ("workers", workers)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    for seed in (first_seed, first_seed + rooms - 1):
        make_room(seed)  # raises for a seed outside the supported range, before anything is written
    require_engine()
    plan = RoomRecordingPlan("vizdoom", rooms, views, first_seed)
    requests = episode_requests(rooms, first_seed, views)
    return record_episodes(folder, plan, requests, DoomSimulator, workers, create_dataset, resume_dataset)


def create_dataset(folder: Path) -> Any:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    options = {"repo_id": f"local/{folder.name}", "root": folder, "features": room_features()}
    return LeRobotDataset.create(fps=FPS, robot_type="vizdoom", use_videos=False, **options)


def resume_dataset(folder: Path) -> Any:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset.resume(repo_id=f"local/{folder.name}", root=folder)
