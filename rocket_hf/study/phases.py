"""An experiment in phases: each runs once, and what it found and how long it took is kept in the experiment's folder.

So an experiment may be interrupted at any moment, and the same command goes on with the phase that it was in.
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
from rocket_hf.files import write_json, write_text
from rocket_hf.training.recipe_files import read_yaml, set_value

PROGRESS, LOG = "progress.json", "log.txt"
Result = dict[str, Any]


class Phases:
    def __init__(self, folder: Path, settings: Result):
        """`settings` are those that its results depend on: an experiment cannot go on with others."""
        self.folder, self.settings = folder, settings
        self.results: dict[str, Result] = {}
        self.seconds: dict[str, float] = {}
        if (folder / PROGRESS).is_file():
            self.read()
        elif folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} holds something else: name another folder by --out")

    def read(self) -> None:
        kept = json.loads((self.folder / PROGRESS).read_text())
        for name, value in kept["settings"].items():
            if self.settings.get(name) != value:
                raise UserError(
                    f"{self.folder} was begun with {name} {value}, not {self.settings.get(name)}: "
                    "repeat the first command to go on, or name another folder by --out"
                )
        self.results, self.seconds = kept["results"], kept["seconds"]

    def write(self) -> None:
        kept = {"settings": self.settings, "seconds": self.seconds, "results": self.results}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / PROGRESS, kept)

    def __call__(self, name: str, work: Callable[[], Result]) -> Result:
        """What the phase finds, or found the first time. The time of attempts that were interrupted counts too."""
        if name not in self.results:
            since = time.perf_counter()
            self.write()
            try:
                self.results[name] = work()
            finally:
                self.seconds[name] = round(self.seconds.get(name, 0) + time.perf_counter() - since, 1)
                self.write()
        return self.results[name]


class Commands:
    """Runs what a user would type, in this process: says it, and keeps what it prints in a file."""

    def __init__(self, log: Path, programs: dict[str, Callable[[list[str]], int]]):
        """`programs` by how they are typed: "rocket-hf", "accelerate launch training/train.py"."""
        self.log, self.programs = log, programs

    def __call__(self, program: str, *words: Any) -> str:
        """What it prints. Its progress bars and its sentence about what went wrong are seen at once."""
        typed = f"{program} {shlex.join(map(str, words))}"
        print(f"$ {typed}", flush=True)
        with Printed(self.log, typed) as printed, contextlib.redirect_stdout(printed):
            code = self.programs[program]([str(word) for word in words])
            text = printed.getvalue()
        if code == 130:
            raise KeyboardInterrupt
        if code:
            raise UserError(f"the command above failed: mend what it says, then run the same again ({self.log})")
        return text


class Printed(io.StringIO):
    """Keeps what is printed, and writes it to a log as it comes."""

    def __init__(self, log: Path, typed: str):
        super().__init__()
        self.file = log.open("a")
        self.file.write(f"$ {typed}\n")

    def write(self, text: str) -> int:
        self.file.write(text)
        self.file.flush()
        return super().write(text)

    def close(self) -> None:
        self.file.close()
        super().close()


def write_recipe(path: Path, name: str, settings: dict[str, Any]) -> Path:
    """A named recipe with other settings, by their dotted keys, as a file that `--recipe` takes."""
    values = read_yaml(name)
    for key, value in settings.items():
        set_value(values, key, value)
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    return path


def words_of(values: Sequence[Any]) -> str:
    return ",".join(map(str, values))
