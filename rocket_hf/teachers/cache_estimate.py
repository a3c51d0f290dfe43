"""Estimate of the time that a feature cache takes, from the time of one batch."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rocket_hf.formatting import format_duration

from .cache_manifest import Manifest

LONG_SECONDS = 3600.0  # duration from which a lower resolution is suggested
SUGGESTED_PATCHES = 16  # on the longer side: as many as the policies themselves have


@dataclass(frozen=True)
class BatchSeconds:
    """Measured time of one batch: of reading its images and of computing its features."""

    reading: float
    computing: float

    def total(self, rows: int, batch_size: int, workers: int, processes: int) -> float:
        """Return the time of all batches. Worker processes read while the teacher computes."""
        batches = rows / batch_size / processes
        return batches * (max(self.reading / workers, self.computing) if workers else self.reading + self.computing)


def measure_batch(read: Callable[[], object], compute: Callable[[], object], device: torch.device) -> BatchSeconds:
    """Measure both functions after one call of each, which opens files and compiles kernels."""
    return BatchSeconds(measure_second_call(read, device), measure_second_call(compute, device))


def measure_second_call(run: Callable[[], object], device: torch.device) -> float:
    run()
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def format_estimate(
    batch: BatchSeconds, manifest: Manifest, patch_size: int, rows: int, batch_size: int, workers: int, processes: int
) -> list[str]:
    """Return the lines of the estimate, with a suggestion if the cache would take over an hour."""
    seconds = batch.total(rows, batch_size, workers, processes)
    duration = f"about {format_duration(seconds)}" if seconds >= 60 else "less than 1 min"
    per_frame = f"{1000 * (batch.reading + batch.computing) / batch_size:.0f} ms per frame"
    lines = [f"time       {duration} for {rows:,} frames ({per_frame})"]
    longer, suggested = max(manifest.input_size), SUGGESTED_PATCHES * patch_size
    if seconds > LONG_SECONDS and suggested < longer:
        # The features of fewer pixels take less time, at least in proportion. The images take the same time to read.
        smaller = BatchSeconds(batch.reading, batch.computing * (suggested / longer) ** 2)
        shorter = format_duration(smaller.total(rows, batch_size, workers, processes))
        lines.append(
            f"           --resolution {suggested} would take about {shorter}: its images have {suggested} instead of "
            f"{longer} pixels on the longer side"
        )
    return lines
