"""Processes for tests that need several: forks of one that has imported what is slow to import and has run nothing.

A fork of the test's own process would begin with what OpenMP, gloo and a dozen earlier runs left in it, without their
threads, and now and then it died of that.
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
    """`target(rank, *arguments)` in so many processes at a time, and their exit codes."""
    processes = [CLEAN.Process(target=target, args=(rank, *arguments)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
        process.kill()  # which does nothing to one that has ended
        process.join()
    return [process.exitcode for process in processes]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
