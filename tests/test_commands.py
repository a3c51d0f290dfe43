"""The command line: help is quick to read and to start, what a user can mend ends with one sentence and exit code 2."""

import subprocess
import sys

import pytest

from rocket_hf.commands import COMMANDS, main


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["--help"])
    assert leaving.value.code == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)


@pytest.mark.parametrize("arguments", [["demo", "--steps", "0"], ["demo", "--steps", "many"], ["fly"], []])
def test_bad_arguments_exit_with_2(arguments, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "rocket_hf.commands", *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "holds something else: name another folder by --out"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
    ],
)
def test_the_demo_keeps_out_of_other_folders_and_refuses_nothing_to_do(tmp_path, words, sentence):
    (tmp_path / "notes.txt").write_text("mine")
    command = [sys.executable, "-m", "rocket_hf.commands", "demo", *words, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, rocket_hf; print([name for name in ('torch', 'transformers', 'lerobot') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_names_of_the_package_load_without_lerobot():
    code = (
        "import sys; sys.modules['lerobot'] = None; import rocket_hf; "
        "print([getattr(rocket_hf, name).__name__ for name in rocket_hf.__all__] == rocket_hf.__all__)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "True"
    import rocket_hf

    with pytest.raises(AttributeError, match="no attribute 'RocketPolicy'"):
        _ = rocket_hf.RocketPolicy
