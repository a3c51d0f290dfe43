"""Experiments in phases: resuming, rejected folders and settings, logged commands."""

import json
import sys

import pytest
import yaml

from rocket_hf.study.phases import PROGRESS, CommandRunner, Phases, write_experiment_recipe
from rocket_hf.training.recipe_files import read_recipe


def test_completed_phase_is_not_repeated(tmp_path):
    calls = []
    for _ in range(2):
        phases = Phases(tmp_path, {"steps": 3})
        assert phases("count", lambda: calls.append(1) or {"found": len(calls)}) == {"found": 1}
    assert len(calls) == 1
    assert phases.seconds.keys() == {"count"}


def test_interrupted_phase_is_repeated_and_its_time_adds_up(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Phases(tmp_path, {})("work", interrupted)
    progress = json.loads((tmp_path / PROGRESS).read_text())
    assert progress["results"] == {} and "work" in progress["seconds"]
    progress["seconds"]["work"] = 100.0
    (tmp_path / PROGRESS).write_text(json.dumps(progress))
    phases = Phases(tmp_path, {})
    phases("work", dict)
    assert phases.seconds["work"] >= 100


def test_changed_settings_are_rejected(tmp_path):
    Phases(tmp_path, {"steps": 3}).write()
    with pytest.raises(ValueError, match=r"was started with steps 3, not 4: .*--out"):
        Phases(tmp_path, {"steps": 4})


def test_folder_with_other_files_is_rejected(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and contains no experiment: choose another folder with --out"):
        Phases(tmp_path, {})
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_command_is_printed_and_its_output_is_logged(tmp_path, capsys):
    def program(words):
        print("hello", *words)
        print("careful", file=sys.stderr)
        return 0

    run = CommandRunner(tmp_path / "log.txt", {"greet": program})
    assert run("greet", "two words", 3) == "hello two words 3\n"
    printed = capsys.readouterr()
    assert printed.out == "$ greet 'two words' 3\n" and printed.err == "careful\n"
    assert (tmp_path / "log.txt").read_text() == "$ greet 'two words' 3\nhello two words 3\n"


@pytest.mark.parametrize(("code", "error"), [(130, KeyboardInterrupt), (2, ValueError)])
def test_failed_command_stops_the_experiment(tmp_path, code, error):
    with pytest.raises(error):
        CommandRunner(tmp_path / "log.txt", {"fail": lambda words: code})("fail")


def test_written_recipe_has_the_changed_settings(tmp_path):
    path = write_experiment_recipe(
        tmp_path / "mine.yaml", "rocket", {"run.steps": 7, "alignment.student_layers": [1, 2, -1]}
    )
    recipe = read_recipe(str(path))
    assert (recipe.run.steps, recipe.alignment.student_layers, recipe.alignment.nesting) == (
        7,
        [1, 2, -1],
        "increasing",
    )
    assert yaml.safe_load(path.read_text())["name"] == "rocket"
