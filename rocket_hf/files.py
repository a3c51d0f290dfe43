"""Atomic writes: after a crash at any time, a file is either complete or has its former content."""

import csv
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import UserError

TEMPORARY_SUFFIX = ".tmp"


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
    """Replace `~` or `~USER` at the start of a path by the home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"the path {path} cannot be resolved: there is no such user; write the whole path") from error


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
