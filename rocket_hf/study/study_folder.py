"""Folder of a study: a copy of its file, and one result per completed unit.

study.yaml, study.json     the study file, and its hash
units/KIND/...             output folders of the commands
results/KIND/....json      command, duration, CPU time and result of each completed unit
logs/KIND/....txt          output of the commands
report/                    tables and figures
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from rocket_hf.errors import UserError
from rocket_hf.files import create_folder, write_atomically, write_json
from rocket_hf.folder_lock import is_unused

from .study_file import Study, quick_study, read_study

FILE, ABOUT = "study.yaml", "study.json"
UnitResult = dict[str, Any]


class StudyFolder:
    """Study in a folder, and the results of its completed units by name."""

    def __init__(self, path: Path, study: Study, is_quick: bool):
        self.path, self.is_quick = path, is_quick
        self.study = quick_study(study) if is_quick else study
        self.results = {name: result for name, result in read_results(path / "results")}

    def result_path(self, name: str) -> Path:
        return self.path / "results" / f"{name}.json"

    def log_path(self, name: str) -> Path:
        path = self.path / "logs" / f"{name}.txt"
        create_folder(path.parent)
        return path

    def add_result(self, name: str, result: UnitResult) -> None:
        path = self.result_path(name)
        create_folder(path.parent)
        write_json(path, result)
        self.results[name] = result


def start_study(file: Path, folder: Path, is_quick: bool) -> StudyFolder:
    """Prepare the folder of a study, or open it to resume the same study. The folder must be locked."""
    study = read_study(file)
    about = {"name": study.name, "sha256": file_hash(file), "quick": is_quick}
    if (folder / ABOUT).is_file():
        check_same_study(file, folder, about)
    elif not is_unused(folder):
        raise UserError(f"{folder} is not empty and contains no study: choose another folder with --out")
    else:
        create_folder(folder)
        write_atomically(folder / FILE, lambda temporary: shutil.copyfile(file, temporary))
        write_json(folder / ABOUT, about)
    return StudyFolder(folder, study, is_quick)


def check_same_study(file: Path, folder: Path, about: dict[str, Any]) -> None:
    started = read_about(folder)
    if started.get("name") != about["name"]:
        raise UserError(
            f"{folder} belongs to the study {started.get('name')}, not {about['name']}: choose another folder with "
            "--out"
        )
    if started.get("sha256") != about["sha256"]:
        raise UserError(
            f"{file} has changed since the runs in {folder} began: restore it from {folder / FILE}, or choose another "
            "folder with --out"
        )
    if started.get("quick") != about["quick"]:
        option = "with" if started.get("quick") else "without"
        raise UserError(
            f"{folder} was started {option} --quick: repeat the command {option} it, or choose another --out"
        )


def open_study(folder: Path) -> StudyFolder:
    """Open a folder to report on it."""
    if not (folder / ABOUT).is_file():
        raise UserError(f"{folder} contains no study: pass a folder written by `rocket-hf study run FILE --out FOLDER`")
    about = read_about(folder)
    if file_hash(folder / FILE) != about.get("sha256"):
        raise UserError(f"{folder / FILE} has changed since the runs began: restore the original study file")
    return StudyFolder(folder, read_study(folder / FILE), bool(about.get("quick")))


def read_about(folder: Path) -> dict[str, Any]:
    values = read_json_file(folder / ABOUT)
    if not isinstance(values, dict):
        raise UserError(f"{folder / ABOUT} is damaged: choose another folder with --out")
    return values


def file_hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read the study {path}: {error.strerror}") from error


def read_results(folder: Path) -> list[tuple[str, UnitResult]]:
    """Read the results of all completed units. They are written atomically, so each is complete."""
    paths = sorted(folder.rglob("[!.]*.json"))
    return [(str(path.relative_to(folder).with_suffix("")), read_json_file(path)) for path in paths]


def read_json_file(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it to run its unit again") from error
