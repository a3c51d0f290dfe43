"""Rooms recorded as a LeRobot dataset: of each one its views, then the bot's way to each of its objects.

Pictures and masks are PNG, without loss. An interruption leaves a readable dataset; the same call goes on from there.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rocket_hf.errors import UserError

from ..demonstrations import Recorded, record_jobs
from .episodes import DoomWorker, columns, jobs_of
from .world import FPS, require_engine


@dataclass(frozen=True)
class RoomPlan:
    """All that decides what is recorded."""

    suite: str
    rooms: int
    views: int  # of each room
    first_seed: int


def record_rooms(folder: Path, rooms: int, views: int, workers: int = 2, first_seed: int = 0) -> Recorded:
    for name, value in (("rooms", rooms), ("views", views), ("workers", workers)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    require_engine()
    plan = RoomPlan("vizdoom", rooms, views, first_seed)
    jobs = jobs_of(rooms, first_seed, views)
    return record_jobs(folder, plan, jobs, DoomWorker, workers, partial(open_dataset, folder))


def open_dataset(folder: Path, resume: bool) -> Any:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    where = {"repo_id": f"local/{folder.name}", "root": folder}
    if resume:
        return LeRobotDataset.resume(**where)
    return LeRobotDataset.create(fps=FPS, features=columns(), robot_type="vizdoom", use_videos=False, **where)
