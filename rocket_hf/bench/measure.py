"""Measurements of benchmarks: CPU time of interleaved jobs, and peak memory in a separate process."""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

Job = Callable[[], Any]


def cpu_seconds(job: Job) -> float:
    start = time.process_time()
    job()
    return time.process_time() - start


def interleaved(jobs: dict[str, Job], rounds: int = 5) -> dict[str, list[float]]:
    """Return the CPU seconds of each job in each round, after one warm-up round.

    Jobs alternate, so that changes of the machine's speed affect all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in tqdm(range(rounds + 1), desc="rounds", leave=False, disable=None):
        for name, job in jobs.items():
            elapsed = cpu_seconds(job)
            if number:
                seconds[name].append(elapsed)
    return seconds


def median_ratio(above: list[float], below: list[float]) -> float:
    """Return the median over rounds of the ratio in each round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def peak_memory(create_job: Callable[..., Job], *arguments: Any) -> int:
    """Return the peak memory of a job in bytes without its inputs, measured in a new process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_memory_in_this_process, (create_job, *arguments))


def _peak_memory_in_this_process(create_job: Callable[..., Job], *arguments: Any) -> int:
    job = create_job(*arguments)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: reset the peak of the resident memory
    before = resident_memory("VmRSS")
    job()
    return resident_memory("VmHWM") - before


def resident_memory(field: str) -> int:
    """Return the current (VmRSS) or peak (VmHWM) resident memory in bytes, as reported by Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))
