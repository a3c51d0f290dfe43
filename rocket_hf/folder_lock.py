"""Lock of an output folder, so that two processes never write to the same one, and folders written as a whole.

The lock is the file `.lock` in the folder, which names the host and the process. The kernel's lock on this file ends
with its process, so on one host the lock of a killed process is recognized at once, also if its process id is in use
again. Other hosts may not see the kernel's lock. Therefore a running process refreshes the time of the file, and a file
that was not refreshed for a long time belongs to a process that was killed.
"""

import fcntl
import glob
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from .errors import UserError
from .files import TEMPORARY_SUFFIX, create_folder, write_errors_as_user_errors

LOCK = ".lock"
REFRESH_SECONDS = 20.0
STALE_SECONDS = 300.0  # age at which a lock of another host counts as that of a killed process
ORPHAN_SECONDS = 15.0  # time in which the forked child processes of a killed process end


@dataclass(frozen=True)
class LockOwner:
    """Process that holds a lock."""

    host: str
    process: int

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


class FolderLock:
    """Context manager that holds the lock of a folder, which it creates if needed.

    It raises a UserError if another process holds the lock. A folder that is still empty at the end is removed if it
    did not exist before.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / LOCK
        self.owner = LockOwner(socket.gethostname(), os.getpid())
        self.is_released = threading.Event()

    def __enter__(self) -> Self:
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file: choose another output folder")
        self.is_new_folder = not self.folder.exists()
        create_folder(self.folder)
        try:
            self.descriptor = self.open()
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, json.dumps(asdict(self.owner)).encode(), 0)
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written: {error.strerror or error}; choose another output folder"
            ) from error
        self.is_released.clear()
        self.thread = threading.Thread(target=self.refresh, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.is_released.set()
        self.thread.join()
        self.path.unlink(missing_ok=True)
        os.close(self.descriptor)
        if self.is_new_folder:
            with suppress(OSError):  # The folder is not empty, or was removed.
                self.folder.rmdir()

    def open(self) -> int:
        """Return the descriptor of the locked file. Raise a UserError if another process holds the lock."""
        end = time.monotonic() + ORPHAN_SECONDS
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                is_locked = try_lock(descriptor)
                owner = read_owner(descriptor)
                if is_locked and is_same_file(descriptor, self.path):
                    self.require_stale(owner, descriptor)
                    locked, descriptor = descriptor, -1
                    return locked
                # A killed process leaves the lock to its forked children, which end soon.
                is_orphaned = owner is not None and owner.host == self.owner.host and not is_running(owner.process)
                if not is_locked and not (is_orphaned and time.monotonic() < end):
                    raise UserError(
                        f"{self.folder} is in use by {owner or 'another process'}: wait until it has finished, or "
                        "choose another output folder"
                    )
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
            time.sleep(0.1)

    def require_stale(self, owner: LockOwner | None, descriptor: int) -> None:
        """Raise a UserError if the process that wrote the lock file may still run on another host."""
        if owner is None or owner.host == self.owner.host:
            return
        age = file_system_time(self.folder) - os.fstat(descriptor).st_mtime
        if age < STALE_SECONDS:
            raise UserError(
                f"{self.folder} is in use by {owner}, which was active {max(0, round(age))} s ago: wait until it has "
                f"finished. If it was killed, remove {self.path}, or try again in {STALE_SECONDS / 60:.0f} minutes."
            )

    def refresh(self) -> None:
        while not self.is_released.wait(REFRESH_SECONDS):
            with suppress(OSError):  # A file server may be unavailable for a moment.
                os.utime(self.descriptor)


def remove_unlocked_folders(parent: Path, prefix: str) -> None:
    """Remove the subfolders of this prefix that belong to killed processes. Running processes hold their locks."""
    for folder in parent.glob(f"{glob.escape(prefix)}*"):
        with suppress(UserError), FolderLock(folder):
            shutil.rmtree(folder)


@contextmanager
def staged_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `folder` when the block ends without an exception, else it is removed.

    Temporary folders of killed processes are removed as well.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"the output folder {folder} exists and is not empty: choose another one, or remove it")
    create_folder(folder.parent)
    prefix = f".{folder.name}.partial-"
    remove_unlocked_folders(folder.parent, prefix)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as temporary, FolderLock(Path(temporary)):
        staging = Path(temporary) / folder.name
        staging.mkdir()
        with write_errors_as_user_errors(folder):
            yield staging
        try:
            if folder.exists():
                folder.rmdir()
            staging.rename(folder)
        except OSError as error:
            raise UserError(
                f"the output folder {folder} cannot be written: {error.strerror}; choose another one, or remove it"
            ) from error


def try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_owner(descriptor: int) -> LockOwner | None:
    """Return the owner in a lock file; None if it is empty or damaged, because its process was killed early."""
    try:
        return LockOwner(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):
        return None


def is_same_file(descriptor: int, path: Path) -> bool:
    """Return whether the path still names the open file, which its previous owner may have removed."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # It runs as another user.
    return True


def file_system_time(folder: Path) -> float:
    """Return the current time of the folder's file system, which may be that of a server with another clock."""
    probe = folder / f"{LOCK}.{os.getpid()}{TEMPORARY_SUFFIX}"
    try:
        probe.write_bytes(b"")
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def is_unused(folder: Path) -> bool:
    """Return whether a folder does not exist, or contains only a lock and temporary files of interrupted writes."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(
        path.name == LOCK or (path.name.startswith(".") and path.name.endswith(TEMPORARY_SUFFIX))
        for path in folder.iterdir()
    )
