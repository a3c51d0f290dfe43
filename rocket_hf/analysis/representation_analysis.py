"""What the layers of an aligned run resemble, at its checkpoints, on the same samples of its data."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rocket_hf.errors import UserError
from rocket_hf.evaluation.trained_policy import find_origin
from rocket_hf.layer_selection.layer_features import layers_of
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.policy_interface import Batch
from rocket_hf.training.checkpoint import Checkpoints, put, read
from rocket_hf.training.optimization import trained
from rocket_hf.training.run import CHECKPOINTS
from rocket_hf.training.vla.targets import Targets

from .representations import Representations, Resemblances
from .restored_run import RestoredRun, restore_run, starting_policy

ALL, LAST = "all", "last"


def analyze_representations(
    path: Path, device: torch.device, which: str, samples: int, batch_size: int
) -> tuple[list[Representations], list[str], list[int], dict[str, Any]]:
    """Of the steps, with the names of the layer pairs and of the teacher's layers, and what it was measured on."""
    if batch_size < 1 or samples < batch_size:
        raise UserError(f"{samples} samples make no batch of {batch_size}: ask for more, or a smaller --batch-size")
    reopened = restore_run(path, device)
    count = samples // batch_size
    read_ahead = reopened.batches(count * batch_size, batch_size)
    batches = list(tqdm(read_ahead, total=count, desc="samples", unit="batch", disable=None, leave=False))
    found = [measure(reopened, policy, batches, step) for step, policy in steps_of(reopened, path, which)]
    head = reopened.policy.alignment_head
    assert head is not None
    pairs = [f"{student}-{teacher}" for student, teacher in head.pairs]
    about = {"recipe": reopened.recipe.name, "batches": count, "batch_size": batch_size, "widths": head.widths}
    return found, pairs, teacher_layers(reopened.policy), about


def steps_of(reopened: RestoredRun, path: Path, which: str) -> Iterator[tuple[int, RocketForActionPrediction]]:
    """The policy at the step it was reopened at; or at its start and at all steps that the run has kept."""
    if which == LAST:
        yield reopened.step, reopened.policy
        return
    origin = find_origin(path)
    assert origin.run is not None, "it was reopened"
    policy = starting_policy(reopened.sources, reopened.recipe).to(reopened.device).eval()
    yield 0, policy
    checkpoints = Checkpoints(origin.run / CHECKPOINTS, keep=1)
    for step in checkpoints.steps():
        place = checkpoints.path(step)
        put(dict(trained(policy)), read(place, "model"), place)
        yield step, policy


@torch.no_grad()
def measure(
    reopened: RestoredRun, policy: RocketForActionPrediction, batches: Sequence[tuple[Batch, Targets]], step: int
) -> Representations:
    head, depth = policy.alignment_head, policy.config.policy_config.depth
    assert head is not None
    sums = Resemblances(head, depth, teacher_layers(policy), reopened.device)
    for batch, targets in tqdm(batches, desc=f"step {step}", unit="batch", disable=None, leave=False):
        with reopened.autocast():
            layers = layers_of(policy, batch, targets)
        sums.add(layers)
    return sums.at(step)


def teacher_layers(policy: RocketForActionPrediction) -> list[int]:
    """Those that it was aligned with, each once, as its configuration writes them."""
    return list(dict.fromkeys(policy.config.alignment.teacher_layers))


def described(found: Sequence[Representations], pairs: Sequence[str]) -> list[str]:
    lines = []
    for each in found:
        cosines = ", ".join(f"{pair} {cosine:.3f}" for pair, cosine in zip(pairs, each.projected, strict=True))
        lines.append(f"step {each.step:<6} projected features and targets: {cosines}")
        for what, table in (("weights", each.projector_weights), ("outputs", each.projector_outputs)):
            if table is not None:
                lines.append(f"{'':11} {what} of two projectors: {between(table):+.3f}")
    return lines


def between(table: list[list[float]]) -> float:
    """The mean off the diagonal."""
    count = len(table)
    return (sum(map(sum, table)) - sum(table[place][place] for place in range(count))) / (count * (count - 1))
