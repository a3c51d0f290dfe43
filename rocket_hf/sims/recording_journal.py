"""Journal of a recording: the episodes that the dataset does not yet contain completely.

lerobot completes its Parquet files only when it closes them, so kill -9 makes all episodes since then unreadable.
Therefore each episode is stored in the folder `.recording` of the dataset until lerobot has closed its files. A commit
closes them and replaces state.json, which describes the last readable state of the dataset. After a kill, the dataset
is restored to that state and the episodes of the journal are written again. A finished recording has no journal.
"""

import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rocket_hf.checkpoint_files import json_value, read_json_object
from rocket_hf.errors import UserError
from rocket_hf.files import create_folder, write_atomically, write_json

from .expert import Demonstration
from .recording import RECORD_AGAIN, RECORDING_FILE, RecordingProgress

JOURNAL, STATE, EPISODES = ".recording", "state.json", "episodes"
# Files that lerobot overwrites. All others belong to the episodes that were written before lerobot closed them.
OVERWRITTEN_FILES = (Path("meta/info.json"), Path("meta/stats.json"), Path("meta/tasks.parquet"), RECORDING_FILE)
WRITTEN_FOLDERS = ("data", "images", "meta", "videos", "tmp*")  # lerobot encodes videos in folders tmp...


def read_state(path: Path) -> dict[str, Any]:
    state = read_json_object(path, RECORD_AGAIN)
    for key, kind in {"plan": dict, "progress": dict, "files": list, "copies": str}.items():
        json_value(state, key, path, kind)
    return state


class RecordingJournal:
    """The journal of the dataset in `folder`."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / JOURNAL
        self.state: dict[str, Any] | None = None
        if (self.path / STATE).is_file():
            self.state = read_state(self.path / STATE)

    def episode_path(self, number: int) -> Path:
        return self.path / EPISODES / f"{number:06d}.npz"

    def commit(self, plan: Any, progress: RecordingProgress) -> None:
        """Make the current files of the dataset, which lerobot has closed, the state that is restored after a kill."""
        copies = f"meta-{progress.episodes:06d}"
        for file in OVERWRITTEN_FILES:
            if (self.folder / file).is_file():
                create_folder((self.path / copies / file).parent)
                copy_atomically(self.folder / file, self.path / copies / file)
        create_folder(self.path / EPISODES)
        files = [str(path.relative_to(self.folder)) for path in self.written_files()]
        self.state = {"plan": asdict(plan), "progress": asdict(progress), "files": files, "copies": copies}
        write_json(self.path / STATE, self.state)
        self.remove_committed(progress.episodes)

    def remove_committed(self, episodes: int) -> None:
        for path in (self.path / EPISODES).iterdir():
            if path.stem < f"{episodes:06d}" or path.suffix != ".npz":
                path.unlink()
        for path in self.path.glob("meta-*"):
            if self.state is not None and path.name != self.state["copies"]:
                shutil.rmtree(path)

    def restore(self) -> None:
        """Restore the dataset to the state of the last commit. Files of other origin remain."""
        assert self.state is not None
        kept = {self.folder / file for file in self.state["files"]}
        for path in self.written_files():
            if path not in kept:
                path.unlink()
        for folder in [*self.folder.glob("tmp*"), self.folder / "images"]:
            if folder.is_dir() and not any(path.is_file() for path in folder.rglob("*")):
                shutil.rmtree(folder)
        for file in OVERWRITTEN_FILES:
            copy = self.path / self.state["copies"] / file
            if copy.is_file():
                copy_atomically(copy, self.folder / file)
        self.remove_committed(self.state["progress"]["episodes"])

    def written_files(self) -> list[Path]:
        folders = [folder for name in WRITTEN_FOLDERS for folder in self.folder.glob(name)]
        return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())

    def save_episode(self, number: int, demonstration: Demonstration) -> int:
        """Store an episode; return its size in bytes."""
        arrays: dict[str, Any] = {
            f"frames/{name}": np.stack([frame[name] for frame in demonstration.frames])
            for name in demonstration.frames[0]
        }
        arrays |= {"instruction": demonstration.instruction, "seed": demonstration.seed}
        arrays["failed_attempts"] = demonstration.failed_attempts

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez(file, **arrays)

        write_atomically(self.episode_path(number), write)
        return self.episode_path(number).stat().st_size

    def read_episodes(self, first: int) -> Iterator[tuple[Demonstration, int]]:
        """Yield the stored episodes from number `first` on, with their sizes in bytes."""
        number = first
        while (path := self.episode_path(number)).is_file():
            yield read_episode(path), path.stat().st_size
            number += 1

    def remove(self) -> None:
        """Remove the journal. A journal without state.json is not used again if this is interrupted."""
        (self.path / STATE).unlink(missing_ok=True)
        self.state = None
        if self.path.is_dir():
            shutil.rmtree(self.path)


def read_episode(path: Path) -> Demonstration:
    try:
        with np.load(path, allow_pickle=False) as values:
            columns = {name.removeprefix("frames/"): values[name] for name in values if name.startswith("frames/")}
            instruction, seed, failed = (values[name].item() for name in ("instruction", "seed", "failed_attempts"))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it to record this episode again") from error
    frames = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return Demonstration(instruction, seed, failed, frames)


def copy_atomically(source: Path, target: Path) -> None:
    write_atomically(target, lambda temporary: shutil.copyfile(source, temporary))


def is_killed_recording(folder: Path) -> bool:
    """Return whether a recording to this folder was killed and not resumed yet, so that its dataset is incomplete."""
    return (folder / JOURNAL / STATE).is_file()
