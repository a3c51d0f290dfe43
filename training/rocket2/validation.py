"""Validation of ROCKET-2 policies in held-out rooms: predicted actions and outputs of the auxiliary heads."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction

from .batches import Rocket2Chunk, rocket2_batch, split_into_chunks
from .samples import Rocket2Samples

StepOutputs = dict[str, Tensor]  # model outputs and targets by name, one row per step that is not padding
HEAD_OUTPUTS = {"point": ("y", "x"), "box": ("x0", "y0", "x1", "y1")}


class Rocket2Validation:
    """Validation on the same samples each time, up to `count` of each kind, shared by the ranks."""

    def __init__(self, samples: Rocket2Samples, count: int, samples_per_pass: int, rank: int, world_size: int):
        self.samples, self.samples_per_pass = samples, samples_per_pass
        self.demonstration_positions = range(rank, min(count, len(samples.segments)), world_size)
        self.view_positions = range(rank, count if samples.views else 0, world_size)

    @property
    def has_data(self) -> bool:
        return bool(self.samples.demonstrations or self.samples.views)

    def __call__(self, policy: Rocket2ForActionPrediction, accelerator: Accelerator) -> dict[str, float]:
        """Return the metrics of actions in demonstrations and of auxiliary heads in views. All ranks must call this."""
        demonstrations, views = (
            gather_outputs([
                self.step_outputs(policy, chunks, accelerator) for chunks in self.batches(positions, is_view)
            ])
            for positions, is_view in ((self.demonstration_positions, False), (self.view_positions, True))
        )  # fmt: skip
        metrics = action_metrics(demonstrations, list(policy.config.factors)) if demonstrations else {}
        return metrics | (auxiliary_metrics(views) if views else {})

    def batches(self, positions: range, is_view: bool) -> Iterator[list[Rocket2Chunk]]:
        settings, size = self.samples.settings, self.samples_per_pass
        for start in range(0, len(positions), size):
            plans = [self.samples.plan(position, is_view) for position in positions[start : start + size]]
            samples = [self.samples.sample(plan) for plan in plans]
            yield list(split_into_chunks(samples, settings.chunk_steps, settings.chunks))

    def step_outputs(
        self, policy: Rocket2ForActionPrediction, chunks: list[Rocket2Chunk], accelerator: Accelerator
    ) -> StepOutputs:
        memory, parts = None, []
        for chunk in chunks:
            with accelerator.autocast():
                output = policy(
                    memory=memory, **rocket2_batch(chunk, accelerator.device, policy.config.auxiliary_heads)
                )
            memory, is_step = output.memory, ~chunk["is_pad"]
            predicted = {f"predicted/{name}": value for name, value in output.auxiliary.items()}
            logits = {f"logits/{name}": value for name, value in output.logits.items()}
            targets = {name: chunk[name] for name in ("actions", "visibility", "point", "box")}
            parts.append({
                name: value.cpu()[is_step] for name, value in {**predicted, **logits, **targets}.items()
            })  # fmt: skip
        return concatenate_outputs(parts)


def concatenate_outputs(parts: list[StepOutputs]) -> StepOutputs:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def gather_outputs(parts: list[StepOutputs]) -> StepOutputs:
    """Return the outputs of all ranks; empty if no rank has any."""
    gathered: list[Any] = gather_object(parts)
    return concatenate_outputs(gathered) if gathered else {}


def action_metrics(outputs: StepOutputs, factors: list[str]) -> dict[str, float]:
    """Return cross-entropy and accuracy of each action factor, and the sum of the cross-entropies as "error"."""
    metrics = {}
    for name, demonstrated in zip(factors, outputs["actions"].unbind(-1), strict=True):
        logits = outputs[f"logits/{name}"]
        metrics[name] = F.cross_entropy(logits, demonstrated).item()
        metrics[f"{name}_accuracy"] = (logits.argmax(dim=-1) == demonstrated).float().mean().item()
    return {"error": sum(metrics[name] for name in factors), **metrics}


def auxiliary_metrics(outputs: StepOutputs) -> dict[str, float]:
    """Return the metrics of the policy's auxiliary heads, each beside that of the best constant prediction.

    Points and boxes are evaluated where the object is visible; their errors are fractions of the image's sides.
    """
    visible, metrics = outputs["visibility"], {}
    if "predicted/visibility" in outputs:
        correct = (outputs["predicted/visibility"][:, 0] > 0) == visible
        share = visible.float().mean().item()
        metrics = {
            "visibility_accuracy": correct.float().mean().item(),
            "visibility_majority": max(share, 1 - share),
        }
    for name, coordinates in HEAD_OUTPUTS.items():
        if f"predicted/{name}" in outputs and visible.any():
            targets = outputs[name][visible]
            constant = targets.median(dim=0).values  # minimizes the mean absolute error
            for kind, prediction in (("error", outputs[f"predicted/{name}"][visible]), ("constant", constant)):
                errors = (prediction - targets).abs().mean(dim=0).tolist()
                metrics |= {f"{name}_{side}_{kind}": value for side, value in zip(coordinates, errors, strict=True)}
    return metrics
