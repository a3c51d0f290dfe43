"""Processes for tests that need several, forked from a server that has only imported slow modules.

Forks of the test process itself would inherit the state of OpenMP, gloo and earlier runs without their threads, which
caused occasional crashes.
"""

import multiprocessing
import socket
from collections.abc import Callable
from typing import Any

CLEAN = multiprocessing.get_context("forkserver")
CLEAN.set_forkserver_preload(
    ["rocket_hf.training.train", "rocket_hf.commands.cache", "lerobot.datasets.lerobot_dataset", "peft"]
)


def run_clean(count: int, target: Callable[..., None], *arguments: Any, seconds: float = 120) -> list[int | None]:
    """Run `target(rank, *arguments)` in `count` processes at the same time; return their exit codes."""
    processes = [CLEAN.Process(target=target, args=(rank, *arguments)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
        process.kill()  # no effect on finished processes
        process.join()
    return [process.exitcode for process in processes]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
