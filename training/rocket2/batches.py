"""What each step of a run reads: its samples' steps cut into chunks, one after the other."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rocket_hf.modeling.rocket2_interface import Rocket2Batch

from .samples import Plan, Rocket2Sample, Rocket2Samples

Rocket2Chunk = dict[
    str, Tensor
]  # a Rocket2Batch, the names of its first frames, and whether it goes on from another chunk
OF_STEPS = (
    "images", "goal_index", "previous_actions", "previous_hidden", "actions", "is_pad", "visibility", "point", "box",
)  # fmt: skip


def chunks_of(plans: Sequence[Plan], chunk_steps: int) -> int:
    """That walks need, and views fill with them; views alone have nothing to remember, so that one is enough."""
    lengths = [len(plan.frames) for plan in plans if plan.frames is not None]
    return -(-max(lengths) // chunk_steps) if lengths else 1


def cut(samples: Sequence[Rocket2Sample], chunk_steps: int, count: int) -> Iterator[Rocket2Chunk]:
    """Samples side by side, in chunks that follow each other; the first `count` of them."""
    together: dict[str, Any] = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}  # type: ignore
    for start in range(0, count * chunk_steps, chunk_steps):
        steps = {key: together[key][:, start : start + chunk_steps] for key in OF_STEPS}
        yield together | steps | {"frame_index": together["frame_index"] + start, "goes_on": torch.tensor(start > 0)}


def rocket2_batch(chunk: Rocket2Chunk, device: torch.device, heads: Sequence[str]) -> Rocket2Batch:
    """What the model reads of a chunk, on its device."""
    known = Rocket2Batch.__annotations__.keys() & chunk.keys()
    unread = {"point", "box"} - set(heads) if heads else {"visibility", "point", "box"}
    return Rocket2Batch(**{key: chunk[key].to(device, non_blocking=True) for key in known - unread})  # type: ignore


class Rocket2Batches:
    """Of one rank."""

    def __init__(self, samples: Rocket2Samples, batch_size: int, each: int, passes: int, rank: int, ranks: int):
        self.samples, self.batch_size, self.each, self.passes = samples, batch_size, each, passes
        self.rank, self.ranks = rank, ranks

    def of_step(self, step: int) -> list[Rocket2Chunk]:
        """As many chunks on each rank, which are those that the longest sample of all needs."""
        goals, first = self.samples.goals, step * self.batch_size
        plans = [self.samples.plan(position, step < goals.warmup_steps)
                 for position in range(first, first + self.batch_size)]  # fmt: skip
        count = chunks_of(plans, goals.chunk_steps)
        chunks: list[Rocket2Chunk] = []
        for number in range(self.passes):
            start = (number * self.ranks + self.rank) * self.each
            own = [self.samples.sample(plan) for plan in plans[start : start + self.each]]
            chunks += cut(own, goals.chunk_steps, count)
        return chunks
