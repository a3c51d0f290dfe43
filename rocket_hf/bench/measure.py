"""How benchmarks measure: CPU time of interleaved runs, and the peak memory of a process of its own."""

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
    """CPU seconds of each job in each round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in tqdm(range(rounds + 1), desc="rounds", leave=False, disable=None):
        for name, job in jobs.items():
            taken = cpu_seconds(job)
            if number:
                seconds[name].append(taken)
    return seconds


def median_ratio(above: list[float], below: list[float]) -> float:
    """The median of the ratios of each round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def peak_memory(make_job: Callable[..., Job], *arguments: Any) -> int:
    """Bytes that a job needs at its peak above what its inputs hold, in a process that runs nothing else."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_memory_here, (make_job, *arguments))


def _peak_memory_here(make_job: Callable[..., Job], *arguments: Any) -> int:
    job = make_job(*arguments)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: start the high-water mark anew
    before = resident("VmRSS")
    job()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Bytes of resident memory, now (VmRSS) or at its peak (VmHWM), from Linux's own accounting."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))
