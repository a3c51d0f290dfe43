"""What choosing layers needs: memory with few and with many samples, and seconds of one batch.

Generated features of a student of 32 layers and a teacher of 24, narrow ones so that a CPU can make them. Each strategy
runs in a process of its own.
"""

import multiprocessing
import time
from pathlib import Path
from typing import Any

import torch

from rocket_hf.bench.measure import resident
from rocket_hf.layer_selection.by_measure import Changes, LayerBatch, Similarities, make_measure

DEPTHS, WIDTHS, CAMERAS, TOKENS, BATCH = (32, 24), (128, 64), 2, 64, 32
SAMPLES = (256, 4096)
STRATEGIES = ("cka", "mutual-knn", "similarity")


def make_batch() -> LayerBatch:
    """The student's stream walks at random; the teacher is half of the channels of its first layers."""
    draw = torch.Generator().manual_seed(0)
    shape = (BATCH, CAMERAS, TOKENS)
    student = {0: torch.randn(*shape, WIDTHS[0], generator=draw)}
    for layer in range(1, DEPTHS[0] + 1):
        student[layer] = student[layer - 1] + 0.3 * torch.randn(*shape, WIDTHS[0], generator=draw)
    teacher = {layer: student[layer][..., : WIDTHS[1]] for layer in range(1, DEPTHS[1] + 1)}
    return LayerBatch(student, teacher, torch.ones(BATCH, CAMERAS, dtype=torch.bool))


def measure_of(strategy: str) -> Similarities | Changes:
    return make_measure(strategy, DEPTHS, torch.device("cpu"), True, [1, 2, 4], "largest")


def peaks_of(strategy: str) -> list[int]:
    """Bytes above those of the first batch's features, at the peak up to each number of samples. One batch stands for
    all: where its features come from is not measured here."""
    batch, measure, peaks = make_batch(), measure_of(strategy), []
    Path("/proc/self/clear_refs").write_text("5")  # Linux: start the high-water mark anew
    before = resident("VmRSS")
    for number in range(1, SAMPLES[-1] // BATCH + 1):
        measure.add(batch)
        if number * BATCH in SAMPLES:
            peaks.append(resident("VmHWM") - before)
    return peaks


def in_a_process_of_its_own(strategy: str) -> list[int]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peaks_of, (strategy,))


def seconds_of(strategy: str) -> float:
    batch, measure = make_batch(), measure_of(strategy)
    measure.add(batch)
    start = time.process_time()
    measure.add(batch)
    return time.process_time() - start


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    figures = {}
    for strategy in STRATEGIES:
        few, many = in_a_process_of_its_own(strategy)
        figures[strategy] = {
            "mib_few": round(few / 2**20, 1),
            "mib_many": round(many / 2**20, 1),
            "seconds_per_batch": round(seconds_of(strategy), 3),
        }
    return figures


def report(figures: dict[str, Any]) -> str:
    few, many = SAMPLES
    rows = [
        f"layers of {DEPTHS[0]} and {DEPTHS[1]} blocks compared, {BATCH} samples at a time; 1 thread",
        "",
        f"{'':12}{f'MiB, {few:,} samples':>22}{f'MiB, {many:,} samples':>22}{'seconds a batch':>18}",
    ]
    for strategy, row in figures.items():
        rows.append(f"{strategy:12}{row['mib_few']:22}{row['mib_many']:22}{row['seconds_per_batch']:18}")
    return "\n".join(rows)
