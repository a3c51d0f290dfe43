"""Writer of a recording's episodes. Each episode is in the journal before lerobot receives it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rocket_hf.errors import UserError

from .dataset_writer import write_episode
from .expert import Demonstration
from .recording import RecordingProgress, save_recording
from .recording_journal import RecordingJournal

COMMIT_BYTES = 2**29  # size of the journal at which lerobot's files are closed
# After a kill the files are closed more often, so that a recording makes progress however often it is killed.
COMMIT_BYTES_AFTER_KILL = 2**26


class RecordingWriter:
    """Writer of the episodes of a plan. `requests` have the `task` of each episode; `resume_dataset` opens the dataset
    for writing."""

    def __init__(
        self,
        folder: Path,
        plan: Any,
        progress: RecordingProgress,
        requests: Sequence[Any],
        resume_dataset: Callable[[Path], Any],
    ):
        self.folder, self.plan, self.progress, self.requests = folder, plan, progress, requests
        self.resume_dataset = resume_dataset
        self.journal = RecordingJournal(folder)
        self.dataset: Any = None
        self.is_complete = True  # whether lerobot has written every episode that it received
        self.journal_bytes = 0

    def start_journal(self) -> None:
        if self.journal.state is None:
            self.journal.commit(self.plan, self.progress)

    def episodes_in_journal(self) -> Iterator[tuple[Demonstration, int]]:
        """Yield the episodes of a killed recording that the dataset does not contain, with their sizes in bytes."""
        return self.journal.read_episodes(self.progress.episodes)

    def add(self, demonstration: Demonstration) -> None:
        """Write the next episode to the journal and the dataset."""
        size = self.journal.save_episode(self.progress.episodes, demonstration)
        self.write(demonstration, size, COMMIT_BYTES)

    def write(self, demonstration: Demonstration, size: int, commit_bytes: int) -> None:
        """Write an episode of the journal to the dataset. Commit if the journal has `commit_bytes`."""
        task, frames = self.requests[self.progress.episodes].task, len(demonstration.frames)
        self.is_complete = False
        with write_errors_reported(self.folder):
            if self.dataset is None:
                self.dataset = self.resume_dataset(self.folder)
            write_episode(self.dataset, demonstration)
        self.is_complete = True
        self.progress.add(task, frames, demonstration.failed_attempts)
        self.journal_bytes += size
        if self.journal_bytes >= commit_bytes:
            self.commit()

    def commit(self) -> None:
        """Close lerobot's files and start an empty journal."""
        if self.dataset is not None:
            self.is_complete = False
            with write_errors_reported(self.folder):
                self.dataset.finalize()
            self.is_complete, self.dataset = True, None
        save_recording(self.folder, self.plan, self.progress)
        self.journal.commit(self.plan, self.progress)
        self.journal_bytes = 0

    def close(self) -> None:
        """Close lerobot's files and remove the journal, unless a write failed: then the journal remains."""
        if self.is_complete:
            self.commit()
            self.journal.remove()
        elif self.dataset is not None:
            with suppress(OSError, RuntimeError):  # the error of the failed write is already raised
                self.dataset.finalize()
            self.dataset = None


@contextmanager
def write_errors_reported(folder: Path) -> Iterator[None]:
    """Convert errors of writes, also those in lerobot's encoder threads, to a UserError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("Encoder thread"):
            raise
        raise UserError(
            f"{folder} cannot be written ({error}): if the disk is full, free some space, then run the same command "
            "again; it keeps all recorded episodes"
        ) from error
