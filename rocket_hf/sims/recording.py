"""What a folder of demonstrations is asked to become, and how far it has come: meta/simulation.json.

A recording that was interrupted goes on where it stopped. One that differs, or was cut off in the middle of a write, is
refused.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rocket_hf.errors import UserError
from rocket_hf.files import write_json

FILE = Path("meta") / "simulation.json"


@dataclass(frozen=True)
class Plan:
    """All that decides what is recorded. The episodes of a task start from first_seed, first_seed + 1, ..."""

    suite: str
    tasks: tuple[str, ...]
    episodes: int  # of each task
    image_size: int
    depth: bool
    first_seed: int

    def starts(self) -> list[tuple[str, int]]:
        """Task and seed of each episode, in the order of the dataset."""
        return [(task, self.first_seed + number) for task in self.tasks for number in range(self.episodes)]


@dataclass
class Progress:
    episodes: int = 0
    frames: int = 0
    dropped: int = 0
    episodes_by_task: dict[str, int] = field(default_factory=dict)
    frames_by_task: dict[str, int] = field(default_factory=dict)
    dropped_by_task: dict[str, int] = field(default_factory=dict)

    def add(self, task: str, frames: int, dropped: int) -> None:
        self.episodes += 1
        self.frames += frames
        self.dropped += dropped
        self.episodes_by_task[task] = self.episodes_by_task.get(task, 0) + 1
        self.frames_by_task[task] = self.frames_by_task.get(task, 0) + frames
        self.dropped_by_task[task] = self.dropped_by_task.get(task, 0) + dropped


def save(folder: Path, plan: Plan, progress: Progress) -> None:
    write_json(folder / FILE, {"plan": asdict(plan), "progress": asdict(progress)})


def open_recording(folder: Path, plan: Plan) -> Progress:
    """How far the same recording has come in this folder; one without an episode is made anew."""
    if not folder.exists():
        return Progress()
    if not (folder / FILE).is_file():
        raise UserError(f"{folder} exists and is no recording of demonstrations: name another folder")
    said = json.loads((folder / FILE).read_text(encoding="utf-8"))
    for key, wanted in json.loads(json.dumps(asdict(plan))).items():
        if said["plan"].get(key) != wanted:
            raise UserError(
                f"{folder} holds demonstrations with {key} {shown(said['plan'].get(key))}, not {shown(wanted)}: "
                "name another folder"
            )
    progress = Progress(**said["progress"])
    written = json.loads((folder / "meta" / "info.json").read_text(encoding="utf-8"))["total_episodes"]
    if progress.episodes == 0:
        shutil.rmtree(folder)
    elif written != progress.episodes:
        raise UserError(f"{folder} was cut off while it was written: remove it and record again")
    return progress


def shown(value: object) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)
