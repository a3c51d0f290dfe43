"""Atomic writes: after a crash at any time, a file is either complete or has its former content."""

import csv
import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .errors import UserError

TEMPORARY_SUFFIX = ".tmp"
# Errors of a full, limited or read-only disk. Others, such as a missing file, would be bugs.
WRITE_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG
}  # fmt: skip


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file with `write`, a function of a temporary path, which replaces `path` after it is on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)  # it exists only if an error occurred


@contextmanager
def write_errors_as_user_errors(folder: Path) -> Iterator[None]:
    """Raise a UserError if files in the folder cannot be written, for instance because the disk is full.

    Libraries raise errors of their own for a failed write: safetensors a SafetensorError, tokenizers a plain Exception.
    Those of reading are reported where the files are opened.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in WRITE_ERRORS:
            raise
        raise cannot_write(folder, error) from error
    except SafetensorError as error:
        raise cannot_write(folder, error) from error
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise cannot_write(folder, error) from error


def cannot_write(folder: Path, error: Exception) -> UserError:
    return UserError(f"Cannot write {folder}: {error}; free some space or choose another folder")


def create_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {path}: {error.strerror}") from error


def require_writable_folder(path: Path) -> None:
    """Create a folder, and raise if a file cannot be written to it, before hours are spent on its content."""
    create_folder(path)
    probe = path / f".probe.{os.getpid()}{TEMPORARY_SUFFIX}"
    try:
        probe.write_bytes(b"x")
    except OSError as error:
        raise UserError(f"the folder {path} cannot be written ({error.strerror}): choose another folder") from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def expand_user(path: str | Path) -> Path:
    """Replace `~` or `~USER` at the start of a path by the home folder, and check that the path can be used."""
    try:
        expanded = Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"the path {path} cannot be resolved: there is no such user; write the whole path") from error
    require_usable_path(expanded)
    return expanded


def require_usable_path(path: Path) -> None:
    """Raise a UserError if it cannot be known whether a path exists: it is too long, or in an unreadable folder."""
    try:
        str(path).encode()  # libraries write files by UTF-8 names only
        path.exists()
    except (OSError, UnicodeEncodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name is not UTF-8"
        start = text if len(text := ascii(str(path))) < 100 else f"{text[:97]}..."
        raise UserError(f"the path {start} cannot be used: {reason}; give another path") from error


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, values: Any) -> None:
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])

    write_atomically(path, write)


def remove_temporary_files(folder: Path) -> None:
    """Remove temporary files of interrupted writes. No other process may be writing to the folder."""
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        path.unlink()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file. The Hub's cache names large files by it, so that those need not be read."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name):
        return blob.name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Force a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
