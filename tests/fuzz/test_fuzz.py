"""Fuzz test of the command line: damaged inputs and wrong arguments end in one message, never in a traceback.

`make test-fuzz` runs all cases, `FUZZ_SEED=1 make test-fuzz` those of another seed. A failure prints how to repeat its
case alone.
"""

import os
import re
import shutil
from pathlib import Path
from random import Random

import pytest

from .cases import COMMANDS, Case, draw_command, mutate
from .material import build_material
from .runner import (
    CLOCK_SECONDS,
    INTERRUPTED,
    LEFT_OVER,
    PROCESSOR_SECONDS,
    Outcome,
    problem,
    run_command,
    run_limited,
    snapshot,
    unreadable_files,
)

pytestmark = pytest.mark.needs_lerobot

SEED, COUNT, STANDARD_COUNT = int(os.environ.get("FUZZ_SEED", "0")), 300, 40
MESSAGE = re.compile(r"(rocket-hf \S+( \S+)?|train\.py|rocket-hf): ")  # as a command starts it
# lerobot logs this in each new process on machines without FFmpeg.
LIBRARY_LOG = re.compile(
    r"\[start of libtorchcodec loading traceback\].*?\[end of libtorchcodec loading traceback\]", re.S
)
NUMBERS = [pytest.param(number, marks=[pytest.mark.slow] * (number >= STANDARD_COUNT)) for number in range(COUNT)]


@pytest.fixture(scope="session")
def material(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "material"
    folder.mkdir()
    outcome = run_limited(build_material, folder, logs=folder.parent / "logs", seconds=600)
    assert (folder / "complete").exists(), outcome.stderr
    return folder


@pytest.mark.parametrize(
    "number", range(len(COMMANDS) - 1), ids=lambda number: " ".join(COMMANDS[number].words.split()[:3])
)
@pytest.mark.slow
def test_unchanged_inputs_are_accepted(number, material, tmp_path):
    """Otherwise the mutations would test the rejection of something else. The last one would train for minutes."""
    command = COMMANDS[number]
    folder = copy_inputs(material, command.inputs.split(), tmp_path)
    outcome = run_command(command.arguments, folder, tmp_path / "logs")
    assert outcome.code == 0, outcome.stderr
    check_success(Case(command, command.arguments), folder)


@pytest.mark.parametrize("number", NUMBERS)
def test_mutation_ends_in_success_or_in_one_message(number, material, tmp_path, request):
    draw = Random(f"{SEED}-{number}")
    command = draw_command(draw)
    inputs = command.inputs.split()
    folder = copy_inputs(material, inputs, tmp_path)
    case = mutate(command, folder, draw)
    before = snapshot(folder, ["."])
    outcome = run_command(case.words, folder, tmp_path / "logs", case.largest_file)
    try:
        check_message(case, outcome)
        check_inputs(case, before, snapshot(folder, ["."]))
        if outcome.code == 0 and case.words == command.arguments:
            check_success(case, folder)
        elif outcome.code != 0:
            check_failure(case, folder)
    except AssertionError as error:
        pytest.fail(
            f"{error}\n\nchanges: {'; '.join(case.changes)}\ncommand: {case.words}\n"
            f"repeat:  FUZZ_SEED={SEED} python -m pytest -m '' '{request.node.nodeid}'\n"
            f"exit code {outcome.code}\n{outcome.stderr[-6000:]}",
            pytrace=False,
        )
    shutil.rmtree(tmp_path)


def copy_inputs(material: Path, names: list[str], parent: Path) -> Path:
    """Copy the named files and folders into a new folder, which is not the only one in its parent."""
    folder = parent / "parent" / "work"
    folder.mkdir(parents=True)
    for name in names:
        source = material / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    return folder


def check_message(case: Case, outcome: Outcome) -> None:
    assert outcome.code not in INTERRUPTED, f"no end within {PROCESSOR_SECONDS} s of computing or {CLOCK_SECONDS} s"
    assert outcome.code in (0, 2), f"exit code {outcome.code}"
    assert "Traceback" not in LIBRARY_LOG.sub("", outcome.stderr), "a traceback"
    assert "Exception ignored" not in outcome.stderr, "an exception in a destructor"
    messages = [line for line in outcome.stderr.splitlines() if MESSAGE.match(line)]
    if outcome.code == 2:
        assert messages, "no message"
    assert len(messages) <= 1 or case.command.words.startswith("cache verify"), "several messages"
    assert all(len(line) < 2000 for line in messages), "a message of more than 2,000 characters"


def check_inputs(case: Case, before: dict[str, str], after: dict[str, str]) -> None:
    writes = tuple(f"{name}/" for name in case.command.writes.split())
    changed = [name for name in before if after.get(name) != before[name] and not name.startswith(writes or ("\0",))]
    assert changed == [], "inputs were changed"


def check_success(case: Case, folder: Path) -> None:
    missing = [name for name in case.command.results.split() if not (folder / name).is_file()]
    assert missing == [], "the command succeeded without its results"
    assert unreadable_files(folder / "out") == []


def check_failure(case: Case, folder: Path) -> None:
    """Nothing is half-written: an atomic output does not exist, and files of others are complete."""
    expected = {name.split("/")[0] for name in case.command.inputs.split()} | {"runs"}
    new = [path.name for path in folder.iterdir() if path.name not in expected]
    assert not (case.command.is_atomic and new), f"the command failed and left {new}"
    assert [file for name in new for file in unreadable_files(folder / name)] == []
    assert [path.name for path in folder.parent.iterdir()] == ["work"], "files were written beside the working folder"
    leftovers = [path for path in folder.rglob("*") if problem(path) == LEFT_OVER]
    assert leftovers == [], "temporary files or locks are left over"
