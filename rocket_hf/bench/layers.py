"""Benchmark of layer selection: memory with few and with many samples, and seconds per batch.

It uses generated features of a student with 32 layers and a teacher with 24, which are narrow enough for a CPU. Each
strategy runs in its own process.
"""

import multiprocessing
import time
from pathlib import Path
from typing import Any

import torch

from rocket_hf.bench.measure import resident_memory
from rocket_hf.layer_selection.by_measure import ChangeMeasure, LayerBatch, SimilarityMeasure, build_measure

DEPTHS, WIDTHS, CAMERAS, TOKENS, BATCH = (32, 24), (128, 64), 2, 64, 32
SAMPLES = (256, 4096)
STRATEGIES = ("cka", "mutual-knn", "similarity")


def make_batch() -> LayerBatch:
    """Return a student whose residual stream is a random walk, and a teacher with half of its channels."""
    draw = torch.Generator().manual_seed(0)
    shape = (BATCH, CAMERAS, TOKENS)
    student = {0: torch.randn(*shape, WIDTHS[0], generator=draw)}
    for layer in range(1, DEPTHS[0] + 1):
        student[layer] = student[layer - 1] + 0.3 * torch.randn(*shape, WIDTHS[0], generator=draw)
    teacher = {layer: student[layer][..., : WIDTHS[1]] for layer in range(1, DEPTHS[1] + 1)}
    return LayerBatch(student, teacher, torch.ones(BATCH, CAMERAS, dtype=torch.bool))


def create_measure(strategy: str) -> SimilarityMeasure | ChangeMeasure:
    return build_measure(strategy, DEPTHS, torch.device("cpu"), True, [1, 2, 4], "largest")


def measure_peak_memory(strategy: str) -> list[int]:
    """Return the peak memory in bytes up to each number of samples, without that of the features.

    The same batch is added again and again, so that only the measure itself is benchmarked.
    """
    batch, measure, peaks = make_batch(), create_measure(strategy), []
    Path("/proc/self/clear_refs").write_text("5")  # Linux: reset the peak of the resident_memory memory
    before = resident_memory("VmRSS")
    for number in range(1, SAMPLES[-1] // BATCH + 1):
        measure.add(batch)
        if number * BATCH in SAMPLES:
            peaks.append(resident_memory("VmHWM") - before)
    return peaks


def peak_memory_in_new_process(strategy: str) -> list[int]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure_peak_memory, (strategy,))


def seconds_per_batch(strategy: str) -> float:
    batch, measure = make_batch(), create_measure(strategy)
    measure.add(batch)
    start = time.process_time()
    measure.add(batch)
    return time.process_time() - start


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    figures = {}
    for strategy in STRATEGIES:
        few, many = peak_memory_in_new_process(strategy)
        figures[strategy] = {
            "mib_few": round(few / 2**20, 1),
            "mib_many": round(many / 2**20, 1),
            "seconds_per_batch": round(seconds_per_batch(strategy), 3),
        }
    return figures


def report(figures: dict[str, Any]) -> str:
    few, many = SAMPLES
    rows = [
        f"comparison of {DEPTHS[0]} student and {DEPTHS[1]} teacher layers, {BATCH} samples per batch; 1 thread",
        "",
        f"{'':12}{f'MiB, {few:,} samples':>22}{f'MiB, {many:,} samples':>22}{'seconds per batch':>18}",
    ]
    for strategy, row in figures.items():
        rows.append(f"{strategy:12}{row['mib_few']:22}{row['mib_many']:22}{row['seconds_per_batch']:18}")
    return "\n".join(rows)
