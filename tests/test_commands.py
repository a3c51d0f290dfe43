"""The command line: help texts, unknown and retired commands, error messages with exit code 2, and import times."""

import subprocess
import sys

import pytest

from rocket_hf.commands import COMMANDS, main


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
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
    ("command", "message"),
    [
        ("pretrain-eyes", "the command 'pretrain-eyes' is now called 'pretrain-encoder'"),
        ("pblish", "unknown command 'pblish': did you mean 'publish'?"),
        ("fly", "unknown command 'fly': choose one of ablate, adapt,"),
    ],
)
def test_retired_and_unknown_commands_exit_with_a_hint(command, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_retired_option_exits_with_its_new_name(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["analyze", "depth", "runs/none", "--dataset", "rgbd", "--out", "depth", "--given-place"])
    assert stopped.value.code == 2
    assert "--given-place is now called --position-features" in capsys.readouterr().err


def test_help_of_the_command_line_does_not_import_torch():
    code = (
        "import sys\nfrom rocket_hf.commands import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip().splitlines()[-1] == "False", done.stderr


def test_errors_that_users_cannot_fix_keep_their_traceback(monkeypatch):
    from rocket_hf.commands import doctor

    def fail(arguments):
        raise ValueError("a bug")

    monkeypatch.setattr(doctor, "run", fail)
    with pytest.raises(ValueError, match="a bug"):
        main(["doctor"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "is not empty and contains no experiment: choose another folder with --out"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
    ],
)
def test_demo_rejects_folders_with_other_files_and_zero_steps(tmp_path, words, message):
    (tmp_path / "notes.txt").write_text("mine")
    command = [sys.executable, "-m", "rocket_hf.commands", "demo", *words, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_importing_the_package_does_not_import_torch():
    code = (
        "import sys, rocket_hf; print([name for name in ('torch', 'transformers', 'lerobot') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_public_names_are_importable_without_lerobot():
    code = (
        "import sys; sys.modules['lerobot'] = None; import rocket_hf; "
        "print([getattr(rocket_hf, name).__name__ for name in rocket_hf.__all__] == rocket_hf.__all__)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "True"
    import rocket_hf

    with pytest.raises(AttributeError, match="no attribute 'RocketPolicy'"):
        _ = rocket_hf.RocketPolicy
