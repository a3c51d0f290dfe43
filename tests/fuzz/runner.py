"""Runs of commands in processes of their own, with limits of time and memory, and what they left behind."""

import hashlib
import json
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

# Processes are forked from a server that has imported the slow modules.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["rocket_hf.training.train", "rocket_hf.commands.cache", "rocket_hf.publishing.verify", "rocket_hf.convert.write",
     "rocket_hf.evaluation.open_loop_report", "lerobot.datasets.lerobot_dataset", "peft", "matplotlib.pyplot",
     "rocket_hf.analysis.depth_analysis"]
)  # fmt: skip
# A hang is measured in processor time, which does not depend on what else the machine does; waiting for something that
# never comes takes none, so that the time by the clock is limited too.
PROCESSOR_SECONDS, CLOCK_SECONDS = 20, 60
MEMORY_BYTES = 6 * 2**30
LEFT_OVER = "left over"
EXIT_CODE = "exit_code"
INTERRUPTED = {-signal.SIGXCPU, -signal.SIGKILL}


@dataclass
class Outcome:
    code: int
    stdout: str
    stderr: str


def run_command(words: list[str], folder: Path, logs: Path, largest_file: int | None = None) -> Outcome:
    """Run a command in `folder`, in which no file may be larger than this; its home folder and output are in `logs`."""
    return run_limited(execute, words, folder, largest_file, logs=logs)


def run_limited(target: Callable[..., None], *arguments: Any, logs: Path, seconds: int = CLOCK_SECONDS) -> Outcome:
    logs.mkdir(parents=True, exist_ok=True)
    process = FORKS.Process(target=start, args=(target, logs, seconds, *arguments))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
    process.join()
    assert process.exitcode is not None
    code = int((logs / EXIT_CODE).read_text()) if (logs / EXIT_CODE).exists() else process.exitcode
    return Outcome(code, *((logs / name).read_text(errors="replace") for name in ("stdout", "stderr")))


def start(target: Callable[..., None], logs: Path, seconds: int, *arguments: Any) -> None:
    os.setsid()
    for number, name in enumerate(("/dev/null", logs / "stdout", logs / "stderr")):
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, number)
    sys.stdin = os.fdopen(0, "r")
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1, errors="backslashreplace")
    resource.setrlimit(resource.RLIMIT_CPU, (min(seconds, PROCESSOR_SECONDS + 5), seconds))
    os.environ |= {"HOME": str(logs), "HF_HUB_OFFLINE": "1"}
    try:
        target(*arguments)
    except SystemExit as stopped:
        # Under load, the server sometimes loses the exit code of a process and reports 255.
        (logs / EXIT_CODE).write_text(str(stopped.code or 0))
        raise


def execute(words: list[str], folder: Path, largest_file: int | None) -> None:
    import huggingface_hub.constants
    import torch

    from rocket_hf.commands import main as rocket_hf
    from rocket_hf.training.train import main as train

    huggingface_hub.constants.HF_HUB_OFFLINE = True
    torch.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write fails with an error
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    os.chdir(folder)
    code = train(words[1:]) if words[0] == "train" else rocket_hf(words)
    sys.stdout.flush()
    sys.exit(code)


def snapshot(folder: Path, names: list[str]) -> dict[str, str]:
    """Return the content of all files of the named files and folders, as hashes."""
    roots = [folder / name for name in names]
    paths = [path for root in roots for path in ([root] if not root.is_dir() else sorted(root.rglob("*")))]
    return {str(path.relative_to(folder)): describe(path) for path in paths if path.is_symlink() or not path.is_dir()}


def describe(path: Path) -> str:
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"


def unreadable_files(folder: Path) -> list[str]:
    """Return the files that are not complete, and temporary files and locks."""
    return [f"{path.relative_to(folder)}: {error}" for path in sorted(folder.rglob("*")) if (error := problem(path))]


def problem(path: Path) -> str:
    if path.name == ".lock" or path.name.endswith(".tmp") or ".staging" in path.name or "probe" in path.name:
        return LEFT_OVER
    if not path.is_file() or path.is_symlink():
        return ""
    try:
        READERS.get(path.suffix, Path.read_bytes)(path)
    except Exception as error:  # whatever a damaged file may raise is reported
        return repr(error)
    return ""


def read_lines(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        json.loads(line)


def read_safetensors(path: Path) -> None:
    with safe_open(path, "pt") as file:
        file.keys()


READERS: dict[str, Callable[[Path], Any]] = {
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".yaml": lambda path: yaml.safe_load(path.read_text(encoding="utf-8")),
    ".jsonl": read_lines,
    ".safetensors": read_safetensors,
}
