"""Files that are there whole or not at all, whenever the process or the machine stops."""

import csv
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .errors import UserError

TEMPORARY = ".tmp"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """`write` fills a temporary file beside `path`, which takes its place once it is on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)  # it is still there if anything failed


def create_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {path}: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda place: place.write_text(text, encoding="utf-8"))


def write_json(path: Path, values: Any) -> None:
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    def write(place: Path) -> None:
        with place.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])

    write_atomically(path, write)


def remove_stale(folder: Path) -> None:
    """What an interrupted `write_atomically` left behind; nobody else may be writing there."""
    for path in folder.glob(f".*{TEMPORARY}"):
        path.unlink()


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
