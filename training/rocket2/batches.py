"""Batches of ROCKET-2 training: the samples of each optimizer step, cut into consecutive chunks."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rocket_hf.modeling.rocket2_interface import Rocket2Batch

from .samples import Rocket2Sample, Rocket2Samples, SamplePlan

# A Rocket2Batch, the ids of its first frames, and `is_continuation`: whether it continues the chunk before it.
Rocket2Chunk = dict[str, Tensor]
PER_STEP_KEYS = (
    "images", "goal_index", "previous_actions", "previous_hidden", "actions", "is_pad", "visibility", "point", "box",
)  # fmt: skip


def count_chunks(plans: Sequence[SamplePlan], chunk_steps: int) -> int:
    """Return the number of chunks that the longest demonstration needs.

    View samples have any number of steps. They need no memory, so that one chunk is enough if there are only views.
    """
    lengths = [len(plan.frames) for plan in plans if plan.frames is not None]
    return -(-max(lengths) // chunk_steps) if lengths else 1


def split_into_chunks(samples: Sequence[Rocket2Sample], chunk_steps: int, count: int) -> Iterator[Rocket2Chunk]:
    """Stack samples and yield the first `count` chunks of `chunk_steps` steps."""
    stacked: dict[str, Any] = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}  # type: ignore
    for start in range(0, count * chunk_steps, chunk_steps):
        steps = {key: stacked[key][:, start : start + chunk_steps] for key in PER_STEP_KEYS}
        frame_index = stacked["frame_index"] + start
        yield stacked | steps | {"frame_index": frame_index, "is_continuation": torch.tensor(start > 0)}


def rocket2_batch(chunk: Rocket2Chunk, device: torch.device, heads: Sequence[str]) -> Rocket2Batch:
    """Return the model's inputs from a chunk, on `device`, without the targets of heads that the policy lacks."""
    known = Rocket2Batch.__annotations__.keys() & chunk.keys()
    unused = {"point", "box"} - set(heads) if heads else {"visibility", "point", "box"}
    return Rocket2Batch(**{key: chunk[key].to(device, non_blocking=True) for key in known - unused})  # type: ignore


class Rocket2Batches:
    """Chunks of one rank for every optimizer step, which has `passes` passes of `samples_per_pass` samples."""

    def __init__(
        self,
        samples: Rocket2Samples,
        batch_size: int,
        samples_per_pass: int,
        passes: int,
        rank: int,
        world_size: int,
    ):
        self.samples, self.batch_size = samples, batch_size
        self.samples_per_pass, self.passes = samples_per_pass, passes
        self.rank, self.world_size = rank, world_size

    def chunks_of_step(self, step: int) -> list[Rocket2Chunk]:
        """Return the chunks of a step. Their number is the same on all ranks: that of the longest sample of all."""
        settings, first = self.samples.settings, step * self.batch_size
        is_warmup = step < settings.warmup_steps
        plans = [self.samples.plan(position, is_view=is_warmup) for position in range(first, first + self.batch_size)]
        count = count_chunks(plans, settings.chunk_steps)
        chunks: list[Rocket2Chunk] = []
        for index in range(self.passes):
            start = (index * self.world_size + self.rank) * self.samples_per_pass
            samples = [self.samples.sample(plan) for plan in plans[start : start + self.samples_per_pass]]
            chunks += split_into_chunks(samples, settings.chunk_steps, count)
        return chunks
