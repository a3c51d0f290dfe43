"""Experiments in phases: each phase runs once, and its result and duration are stored in the experiment's folder.

An experiment may be interrupted at any moment; the same command resumes it with the unfinished phase.
"""

import contextlib
import io
import json
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from rocket_hf.errors import UserError
from rocket_hf.files import create_folder, write_json, write_text
from rocket_hf.folder_lock import is_unused
from rocket_hf.training.recipe_files import read_recipe_values, set_value

PROGRESS, LOG = "progress.json", "log.txt"
Result = dict[str, Any]


class Phases:
    """Results and durations of an experiment's completed phases, stored in progress.json.

    `settings` are those that the results depend on: an experiment cannot be resumed with other settings.
    """

    def __init__(self, folder: Path, settings: Result):
        self.folder, self.settings = folder, settings
        self.results: dict[str, Result] = {}
        self.seconds: dict[str, float] = {}
        if (folder / PROGRESS).is_file():
            self.read()
        elif not is_unused(folder):
            raise UserError(f"{folder} is not empty and contains no experiment: choose another folder with --out")

    def read(self) -> None:
        progress = read_experiment_progress(self.folder)
        for name, value in progress["settings"].items():
            if self.settings.get(name) != value:
                raise UserError(
                    f"{self.folder} was started with {name} {value}, not {self.settings.get(name)}: repeat the "
                    "original command to resume it, or choose another folder with --out"
                )
        self.results, self.seconds = progress["results"], progress["seconds"]

    def write(self) -> None:
        progress = {"settings": self.settings, "seconds": self.seconds, "results": self.results}
        create_folder(self.folder)
        write_json(self.folder / PROGRESS, progress)

    def __call__(self, name: str, run: Callable[[], Result]) -> Result:
        """Run a phase, or return its stored result. Its duration includes interrupted attempts."""
        if name not in self.results:
            start = time.perf_counter()
            self.write()
            try:
                self.results[name] = run()
            finally:
                self.seconds[name] = round(self.seconds.get(name, 0) + time.perf_counter() - start, 1)
                self.write()
        return self.results[name]


def read_experiment_progress(folder: Path) -> dict[str, Any]:
    path = folder / PROGRESS
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): choose another folder with --out, or remove {folder}"
        ) from error


class CommandRunner:
    """Runner for the commands of an experiment, in this process. It prints each command and logs its output.

    `programs` maps what a user would type ("rocket-hf", "accelerate launch training/train.py") to functions.
    """

    def __init__(self, log: Path, programs: dict[str, Callable[[list[str]], int]]):
        self.log, self.programs = log, programs

    def __call__(self, program: str, *words: Any) -> str:
        """Run a command and return its standard output. Progress bars and errors are printed immediately."""
        command = f"{program} {shlex.join(map(str, words))}"
        print(f"$ {command}", flush=True)
        with LoggedOutput(self.log, command) as output, contextlib.redirect_stdout(output):
            code = self.programs[program]([str(word) for word in words])
            text = output.getvalue()
        if code == 130:
            raise KeyboardInterrupt
        if code:
            raise UserError(
                f"the command above failed (its output is in {self.log}): fix the error, then repeat your command to "
                "resume"
            )
        return text


class LoggedOutput(io.StringIO):
    """Text buffer that also appends everything to a log file immediately."""

    def __init__(self, log: Path, command: str):
        super().__init__()
        self.file = log.open("a")
        self.file.write(f"$ {command}\n")

    def write(self, text: str) -> int:
        self.file.write(text)
        self.file.flush()
        return super().write(text)

    def close(self) -> None:
        self.file.close()
        super().close()


def write_experiment_recipe(path: Path, name: str, settings: dict[str, Any]) -> Path:
    """Write a recipe file: the recipe `name` with `settings`, a dictionary with dotted keys."""
    values = read_recipe_values(name)
    for key, value in settings.items():
        set_value(values, key, value)
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    return path


def join_values(values: Sequence[Any]) -> str:
    return ",".join(map(str, values))
