"""Plan and progress of a recording, stored in the dataset's meta/simulation.json.

The field names of the plan and the progress are the keys of the file.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rocket_hf.checkpoint_files import read_json_object
from rocket_hf.errors import UserError
from rocket_hf.files import write_json

RECORDING_FILE = Path("meta") / "simulation.json"
RECORD_AGAIN = "remove the recording and record it again"


@dataclass(frozen=True)
class RecordingPlan:
    """All settings that determine the recorded data. The episodes of a task have the seeds first_seed, +1, +2, ..."""

    suite: str  # environment name: the suite, and its settings if it has any
    tasks: tuple[str, ...]
    episodes: int  # per task
    image_size: int
    depth: bool
    first_seed: int

    def episode_seeds(self) -> list[tuple[str, int]]:
        """Return the task and seed of each episode, in the order of the dataset."""
        return [(task, self.first_seed + number) for task in self.tasks for number in range(self.episodes)]


@dataclass
class RecordingProgress:
    """Numbers of recorded episodes and frames, and of failed attempts of the expert, in total and for each task."""

    episodes: int = 0
    frames: int = 0
    dropped: int = 0  # attempts that were not recorded because the expert failed
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


def parse_progress(values: dict[str, Any], path: Path) -> RecordingProgress:
    """Return the progress that is stored in the file at `path`; raise UserError if it lacks a number."""
    counts = [values.get(name) for name in ("episodes", "frames", "dropped")]
    by_task = [values.get(f"{name}_by_task") for name in ("episodes", "frames", "dropped")]
    tables = [table for table in by_task if isinstance(table, dict)]
    numbers = [*counts, *(number for table in tables for number in table.values())]
    is_complete = len(tables) == 3 and all(table.keys() == tables[0].keys() for table in tables)
    if len(values) != 6 or not is_complete or not all(isinstance(number, int) for number in numbers):
        raise UserError(f"{path} does not give the progress of a recording: {RECORD_AGAIN}")
    return RecordingProgress(**values)


def save_recording(folder: Path, plan: Any, progress: RecordingProgress) -> None:
    write_json(folder / RECORDING_FILE, {"plan": asdict(plan), "progress": asdict(progress)})


def read_recording(folder: Path) -> dict[str, Any]:
    """Return the content of meta/simulation.json: the dictionaries "plan" and "progress"."""
    path = folder / RECORDING_FILE
    if not path.is_file():
        raise UserError(
            f"{folder} is not a recording of `rocket-hf simulate`: it has no {RECORDING_FILE}. Choose another folder."
        )
    recording = read_json_object(path, RECORD_AGAIN)
    if not all(isinstance(recording.get(part), dict) for part in ("plan", "progress")):
        raise UserError(f"{path} has no plan and progress of a recording: remove {folder} and record again")
    return recording


def require_same_plan(folder: Path, recording: dict[str, Any], plan: Any) -> None:
    for key, requested in json.loads(json.dumps(asdict(plan))).items():
        recorded = recording["plan"].get(key)
        if recorded != requested:
            raise UserError(
                f"{folder} contains a recording with {key} {format_setting(recorded)}, "
                f"not {format_setting(requested)}: choose another folder"
            )


def require_complete_dataset(folder: Path, progress: RecordingProgress) -> None:
    """Reject recordings that version 0.1.0, which had no journal, could not complete."""
    episodes = read_json_object(folder / "meta" / "info.json", RECORD_AGAIN).get("total_episodes")
    if episodes != progress.episodes:
        raise UserError(
            f"{folder} is damaged: it has {episodes} episodes, and its {RECORDING_FILE} lists {progress.episodes}, "
            "because its recording was killed during a write: remove it and record again"
        )


def format_setting(value: object) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)
