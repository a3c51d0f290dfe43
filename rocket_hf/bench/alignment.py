"""Benchmark of the alignment head, forward and backward, from raw teacher features to gradients of taps and projector.

The mode "plain" computes the same loss with the same weights and nested widths like the public reference code: in a
loop over pairs and samples that rebuilds the position code and resamples it with the features each time.
"""

import math
import statistics
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rocket_hf.bench.measure import Job, interleaved, median_ratio, peak_memory
from rocket_hf.modeling.alignment_head import AlignmentHead
from rocket_hf.modeling.configuration_rocket import AlignmentConfig
from rocket_hf.teachers.registration import CODE_WEIGHT, position_code, register_features

# ROCKET on OpenVLA: 10 pairs, 2 cameras of 16 x 16 tokens of width 4096, VGGT's 37 x 37 patches of 2048 channels.
STUDENTS, TEACHERS = (2, 4, 6, 8, 10, 12, 14, 16, 18, 31), (3, 5, 7, 9, 11, 13, 15, 17, 19, 24)
DEPTH, STREAM_WIDTH, TARGET_WIDTH = 32, 4096, 2048
BATCH, CAMERAS, GRID, TEACHER_GRID = 2, 2, (16, 16), (37, 37)
THREADS = 2


def create_alignment_job(mode: str) -> Job:
    """Create a job for one forward and backward pass.

    `mode` is "plain", "nested" (this package's head with ROCKET's widths) or "full" (this package's head, full widths).
    """
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    nesting = "none" if mode == "full" else "increasing"
    config = AlignmentConfig(
        student_layers=STUDENTS,
        teacher_layers=TEACHERS,
        nesting=nesting,
        hidden_width=TARGET_WIDTH,
        target_width=TARGET_WIDTH,
    )
    head = AlignmentHead(config, STREAM_WIDTH, DEPTH)
    tokens = math.prod(GRID)
    taps = {layer: torch.randn(BATCH, CAMERAS, tokens, STREAM_WIDTH, requires_grad=True) for layer in STUDENTS}
    features = {layer: torch.randn(BATCH, CAMERAS, math.prod(TEACHER_GRID), TARGET_WIDTH) for layer in TEACHERS}

    def job() -> Tensor:
        for tensor in (*taps.values(), *head.parameters()):
            tensor.grad = None
        losses = plain_losses(head, taps, features) if mode == "plain" else head_losses(head, taps, features)
        loss = torch.stack(losses).mean()
        loss.backward()
        return loss.detach()

    return job


def head_losses(head: AlignmentHead, taps: dict[int, Tensor], features: dict[int, Tensor]) -> list[Tensor]:
    targets = {layer: register_features(feature, TEACHER_GRID, GRID) for layer, feature in features.items()}
    return list(head(taps, targets, torch.ones(BATCH, CAMERAS, dtype=torch.bool)).values())


def plain_losses(head: AlignmentHead, taps: dict[int, Tensor], features: dict[int, Tensor]) -> list[Tensor]:
    projector, losses = head.projectors[0], []
    for (student, teacher), width in zip(head.pairs, head.widths, strict=True):
        total = torch.zeros(())
        for sample in range(BATCH):
            code = CODE_WEIGHT * position_code(TEACHER_GRID, TARGET_WIDTH)
            maps = (features[teacher][sample] + code).transpose(1, 2).unflatten(2, TEACHER_GRID)
            pooled = F.interpolate(maps, size=GRID, mode="bilinear", antialias=True).flatten(2).transpose(1, 2)
            projected = projector(taps[student][sample], width)
            total = total + (1 - (F.normalize(projected, dim=-1) * F.normalize(pooled, dim=-1)).sum(-1)).mean()
        losses.append(total / BATCH)
    return losses


def measure() -> dict[str, Any]:
    jobs = {mode: create_alignment_job(mode) for mode in ("plain", "nested", "full")}
    difference = abs(float(jobs["plain"]()) - float(jobs["nested"]()))
    seconds = interleaved(jobs)
    memory = {mode: peak_memory(create_alignment_job, mode) for mode in jobs}
    return {
        "cpu_ratio_to_plain": round(median_ratio(seconds["nested"], seconds["plain"]), 3),
        "nested_to_full": round(median_ratio(seconds["nested"], seconds["full"]), 3),
        "peak_memory_ratio": round(memory["nested"] / memory["plain"], 3),
        "cpu_seconds": {mode: round(statistics.median(times), 2) for mode, times in seconds.items()},
        "peak_memory_mib": {mode: round(size / 2**20) for mode, size in memory.items()},
        "loss_difference": difference,
    }


def report(figures: dict[str, Any]) -> str:
    rows = [
        f"alignment head, forward + backward: {BATCH} x {CAMERAS * math.prod(GRID)} tokens x {len(STUDENTS)} pairs, "
        f"{STREAM_WIDTH} -> {TARGET_WIDTH} -> {TARGET_WIDTH}, float32, {THREADS} CPU threads, medians of five rounds",
        "",
        f"{'':22}{'CPU seconds':>12}{'peak MiB':>10}",
    ]
    names = {"plain": "naive loop, nested", "nested": "this head, nested", "full": "this head, full width"}
    for mode, name in names.items():
        rows.append(f"{name:22}{figures['cpu_seconds'][mode]:12.2f}{figures['peak_memory_mib'][mode]:10}")
    rows += [
        "",
        f"CPU time, nested / naive loop     {figures['cpu_ratio_to_plain']:.3f}",
        f"CPU time, nested / full width     {figures['nested_to_full']:.3f}",
        f"peak memory, nested / naive loop  {figures['peak_memory_ratio']:.3f}",
        f"difference of the losses          {figures['loss_difference']:.1e}",
    ]
    return "\n".join(rows)
