"""Locks of output folders, held by real processes that end or are killed."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from rocket_hf.commands import main
from rocket_hf.errors import UserError
from rocket_hf.folder_lock import LOCK, STALE_SECONDS, FolderLock, staged_folder
from rocket_hf.tiny_dataset import write_tiny_dataset

HOLD = """
import contextlib, os, sys, time
from pathlib import Path

context, folder, forks = sys.argv[1:]
if context == "lock":
    from rocket_hf.folder_lock import FolderLock as hold
else:
    from rocket_hf.folder_lock import staged_folder as hold
with hold(Path(folder)):
    if forks == "fork" and os.fork() == 0:
        time.sleep(2)
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holding_process(folder, context="lock", forks="-"):
    """Yield a process that holds the lock of a folder until its standard input is closed."""
    command = [sys.executable, "-c", HOLD, context, str(folder), forks]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        if process.poll() is None:
            process.stdin.close()


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


def write_lock(folder, host, process):
    folder.mkdir(exist_ok=True)
    (folder / LOCK).write_text(json.dumps({"host": host, "process": process}))


def test_folder_of_running_process_is_refused(tmp_path):
    folder = tmp_path / "out"
    with holding_process(folder) as process:
        message = f"out is in use by process {process.pid} on {socket.gethostname()}: wait until it has finished"
        with pytest.raises(UserError, match=message), FolderLock(folder):
            pass
        assert (folder / LOCK).is_file()
        kill(process)
    with FolderLock(folder):
        assert json.loads((folder / LOCK).read_text())["process"] == os.getpid()


def test_released_lock_leaves_nothing_behind(tmp_path):
    with FolderLock(tmp_path / "new"):
        with pytest.raises(UserError, match="in use by process"), FolderLock(tmp_path / "new"):
            pass
        assert (tmp_path / "new" / LOCK).is_file()
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    with FolderLock(tmp_path / "empty"):
        pass
    assert list((tmp_path / "empty").iterdir()) == []


def test_lock_of_killed_process_with_running_child_is_taken_over(tmp_path):
    """A forked child inherits the kernel's lock. It ends soon after its parent, like the workers of a DataLoader."""
    with holding_process(tmp_path, forks="fork") as process:
        kill(process)
        start = time.monotonic()
        with FolderLock(tmp_path):
            assert time.monotonic() - start > 0.2


def test_process_id_that_is_in_use_again_does_not_hold_a_lock(tmp_path):
    write_lock(tmp_path, socket.gethostname(), os.getppid())
    with FolderLock(tmp_path):
        pass


def test_lock_of_other_host_is_respected_until_it_is_stale(tmp_path):
    write_lock(tmp_path, "node-17", 4321)
    message = (
        r"is in use by process 4321 on node-17, which was active \d s ago: wait until it has finished. If it was "
        rf"killed, remove {tmp_path}/.lock, or try again in 5 minutes."
    )
    with pytest.raises(UserError, match=message), FolderLock(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK]
    old = time.time() - STALE_SECONDS - 60
    os.utime(tmp_path / LOCK, (old, old))
    with FolderLock(tmp_path):
        pass


def test_running_process_refreshes_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr("rocket_hf.folder_lock.REFRESH_SECONDS", 0.05)
    with FolderLock(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        time.sleep(0.5)
        assert time.time() - (tmp_path / LOCK).stat().st_mtime < 10


def test_damaged_lock_is_taken_over(tmp_path):
    (tmp_path / LOCK).write_text('{"host"')  # its process was killed while it wrote
    with FolderLock(tmp_path):
        pass


def test_file_in_place_of_folder_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file is a file: choose another output folder"), FolderLock(tmp_path / "file"):
        pass


def test_staging_folder_of_killed_process_is_removed(tmp_path):
    with holding_process(tmp_path / "policy", "staging") as process:
        assert len(list(tmp_path.glob(".policy.partial-*"))) == 1
        with staged_folder(tmp_path / "policy") as staging:
            (staging / "weights").write_text("new")
            assert len(list(tmp_path.glob(".policy.partial-*"))) == 2, "the folder of the running process is kept"
        kill(process)
    assert len(list(tmp_path.glob(".policy.partial-*"))) == 1
    (tmp_path / "policy" / "weights").unlink()
    with staged_folder(tmp_path / "policy") as staging:
        (staging / "weights").write_text("newer")
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert [path.name for path in (tmp_path / "policy").iterdir()] == ["weights"]


@pytest.mark.needs_lerobot
@pytest.mark.parametrize("command", ["train", "simulate", "cache", "demo", "ablate"])
def test_command_refuses_folder_of_running_process(command, tmp_path, capsys):
    from rocket_hf.training import train

    dataset = write_tiny_dataset(tmp_path / "dataset", episodes=1)
    words = {
        "train": ["--recipe", "none", "--policy", str(tmp_path / "policy"), "--dataset", str(dataset)],
        "simulate": ["simulate", "metaworld", "--tasks", "reach-v3", "--episodes", "1"],
        "cache": ["cache", "build", str(dataset), "--teacher", "embedded", "--device", "cpu", "--layers", "1"],
        "demo": ["demo", "--episodes", "1"],
        "ablate": ["ablate", "--episodes", "1"],
    }[command]
    out = tmp_path / "out"
    with holding_process(out) as process:
        run = train.main if command == "train" else main
        assert run([*words, "--out", str(out)]) == 2
        assert f"{out} is in use by process {process.pid} on" in capsys.readouterr().err
        assert [path.name for path in out.iterdir()] == [LOCK]
