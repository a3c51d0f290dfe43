"""What a ROCKET-2 policy makes of rooms that it has not seen: how the bot's actions surprise it, and what it sees."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction

from .batches import Rocket2Chunk, cut, rocket2_batch
from .samples import Rocket2Samples

Rows = dict[str, Tensor]  # one row for each step that exists


class Rocket2Validation:
    """The same samples each time, `count` of each kind, shared by the ranks."""

    def __init__(self, samples: Rocket2Samples, count: int, each: int, rank: int, ranks: int):
        self.samples, self.each = samples, each
        self.walks = range(rank, min(count, len(samples.segments)), ranks)
        self.views = range(rank, count if samples.views else 0, ranks)

    def __call__(self, policy: Rocket2ForActionPrediction, accelerator: Accelerator) -> dict[str, float]:
        """All ranks call it. Of walks the surprise of actions, in nats, and how many are right; of views what the heads
        say, beside the best that a constant could."""
        walks, views = (
            gathered([self.rows(policy, chunks, accelerator) for chunks in self.batches(positions, of_views)])
            for positions, of_views in ((self.walks, False), (self.views, True))
        )
        return (surprise(walks, list(policy.config.factors)) if walks else {}) | (sight(views) if views else {})

    def batches(self, positions: range, of_views: bool) -> Iterator[list[Rocket2Chunk]]:
        goals = self.samples.goals
        for start in range(0, len(positions), self.each):
            plans = [self.samples.plan(position, of_views) for position in positions[start : start + self.each]]
            yield list(cut([self.samples.sample(plan) for plan in plans], goals.chunk_steps, goals.chunks))

    def rows(self, policy: Rocket2ForActionPrediction, chunks: list[Rocket2Chunk], accelerator: Accelerator) -> Rows:
        memory, parts = None, []
        for chunk in chunks:
            with accelerator.autocast():
                output = policy(
                    memory=memory, **rocket2_batch(chunk, accelerator.device, policy.config.auxiliary_heads)
                )
            memory, exists = output.memory, ~chunk["is_pad"]
            said = {f"said/{name}": value for name, value in output.auxiliary.items()}
            scores = {f"scores/{name}": value for name, value in output.logits.items()}
            told = {name: chunk[name] for name in ("actions", "visibility", "point", "box")}
            parts.append({name: value.cpu()[exists] for name, value in {**said, **scores, **told}.items()})
        return joined(parts)


def joined(parts: list[Rows]) -> Rows:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def gathered(mine: list[Rows]) -> Rows:
    """Of all ranks; nothing where none has any."""
    everyone: list[Any] = gather_object(mine)
    return joined(everyone) if everyone else {}


def surprise(rows: Rows, factors: list[str]) -> dict[str, float]:
    """Cross-entropies of a step's choices, the accuracy of the likeliest ones, and the sum of all factors as error."""
    found = {}
    for name, chosen in zip(factors, rows["actions"].unbind(-1), strict=True):
        scores = rows[f"scores/{name}"]
        found[name] = F.cross_entropy(scores, chosen).item()
        found[f"{name}_accuracy"] = (scores.argmax(dim=-1) == chosen).float().mean().item()
    return {"error": sum(found[name] for name in factors), **found}


def sight(rows: Rows) -> dict[str, float]:
    """Of the heads that there are; places where the object is visible, as shares of the picture's sides."""
    visible, found = rows["visibility"], {}
    if "said/visibility" in rows:
        right = (rows["said/visibility"][:, 0] > 0) == visible
        share = visible.float().mean().item()
        found = {"visibility_accuracy": right.float().mean().item(), "visibility_majority": max(share, 1 - share)}
    for name, sides in (("point", ("y", "x")), ("box", ("x0", "y0", "x1", "y1"))):
        if f"said/{name}" in rows and visible.any():
            told = rows[name][visible]
            constant = told.median(dim=0).values  # the best one for this error
            for what, said in (("error", rows[f"said/{name}"][visible]), ("constant", constant)):
                distances = (said - told).abs().mean(dim=0).tolist()
                found |= {f"{name}_{side}_{what}": value for side, value in zip(sides, distances, strict=True)}
    return found
