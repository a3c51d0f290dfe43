"""What choosing layers needs: memory with few and with many samples, and seconds of one batch.

Generated features of a student of 32 layers and a teacher of 24, narrow ones so that a CPU can make them. Each peak is
that of a process of its own.
"""

import time
from typing import Any

import torch

from rocket_hf.bench.measure import Job, peak_memory
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


def job_of(strategy: str, samples: int) -> Job:
    """One batch stands for all: where its features come from is not measured here."""
    batch, measure = make_batch(), measure_of(strategy)
    measure.add(batch)  # what is loaded with the first batch counts for neither number of samples

    def job() -> None:
        for _ in range(samples // BATCH):
            measure.add(batch)
        measure.pairs(8)

    return job


def seconds_of(strategy: str) -> float:
    batch, measure = make_batch(), measure_of(strategy)
    measure.add(batch)
    start = time.process_time()
    measure.add(batch)
    return time.process_time() - start


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    few, many = SAMPLES
    return {
        strategy: {
            "mib_few": round(peak_memory(job_of, strategy, few) / 2**20, 1),
            "mib_many": round(peak_memory(job_of, strategy, many) / 2**20, 1),
            "seconds_per_batch": round(seconds_of(strategy), 3),
        }
        for strategy in STRATEGIES
    }


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
