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


def test_the_demo_replaces_its_own_output_and_nothing_else(tmp_path):
    mine = tmp_path / "out" / "policy" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    command = [sys.executable, "-m", "rocket_hf.commands", "demo", "--steps", "1", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "exists and is not empty" in done.stderr
    assert mine.read_text() == "mine"
    mine.unlink()
    for _ in range(2):
        assert subprocess.run(command, capture_output=True).returncode == 0


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
