"""Similarity of a run's student and teacher layers (CKA), and of projected features and targets (cosine).

`rocket-hf analyze representations` computes them at one or all checkpoints of the run, on the same training samples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from rocket_hf.errors import UserError
from rocket_hf.evaluation.trained_policy import find_trained_policy
from rocket_hf.layer_selection.layer_features import extract_layers
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.policy_interface import Batch
from rocket_hf.training.checkpoint import Checkpoints, load_trainable_weights, read_tensors
from rocket_hf.training.run import CHECKPOINTS
from rocket_hf.training.vla.targets import Targets

from .representations import RepresentationSums, RepresentationTables
from .restored_run import RestoredRun, build_initial_policy, restore_run


@dataclass
class RepresentationAnalysis:
    """Similarity tables of a run at one or more steps, with the names of their rows and columns."""

    steps: list[RepresentationTables]  # one for each analyzed step
    pairs: list[str]  # "STUDENT-TEACHER"
    teacher_layers: list[int]
    about: dict[str, Any]  # settings that the report lists: recipe, batches, batch size, target widths


def analyze_representations(
    path: Path, device: torch.device, checkpoints: Literal["all", "last"], samples: int, batch_size: int
) -> RepresentationAnalysis:
    """Compute the similarity tables of one checkpoint or of all checkpoints of a run.

    Args:
        path: Folder of a run, or of one of its checkpoints.
        device: Device of the policy and the teacher.
        checkpoints: "last" for the checkpoint that `path` names, or the last one of a run folder; "all" for the initial
            policy and every kept checkpoint.
        samples: Number of training samples, rounded down to whole batches.
        batch_size: Samples per batch.
    """
    if batch_size < 1 or samples < batch_size:
        raise UserError(
            f"{samples} samples do not fill a batch of {batch_size}: pass more --samples, or a smaller --batch-size"
        )
    run = restore_run(path, device)
    batch_count = samples // batch_size
    loader = run.batches(batch_count * batch_size, batch_size)
    # All checkpoints are measured on the same batches, so the teacher runs only once.
    batches = list(tqdm(loader, total=batch_count, desc="samples", unit="batch", disable=None, leave=False))
    tables = [measure_step(run, policy, batches, step) for step, policy in policies_by_step(run, path, checkpoints)]
    head = run.policy.alignment_head
    assert head is not None
    pairs = [f"{student}-{teacher}" for student, teacher in head.pairs]
    about = {"recipe": run.recipe.name, "batches": batch_count, "batch_size": batch_size, "widths": head.widths}
    return RepresentationAnalysis(tables, pairs, aligned_teacher_layers(run.policy), about)


def policies_by_step(
    run: RestoredRun, path: Path, checkpoints: Literal["all", "last"]
) -> Iterator[tuple[int, RocketForActionPrediction]]:
    """Yield the step and the policy of the restored checkpoint, or of the initial policy and all checkpoints.

    With "all", each step loads its weights into the same policy object: use it before requesting the next step.
    """
    if checkpoints == "last":
        yield run.step, run.policy
        return
    source = find_trained_policy(path)
    assert source.run is not None, "restore_run accepts only paths inside a run"
    policy = build_initial_policy(run.resources, run.recipe).to(run.device).eval()
    yield 0, policy
    store = Checkpoints(source.run / CHECKPOINTS, keep=1)
    for step in store.steps():
        checkpoint = store.path(step)
        load_trainable_weights(policy, read_tensors(checkpoint, "model"), checkpoint)
        yield step, policy


@torch.no_grad()
def measure_step(
    run: RestoredRun, policy: RocketForActionPrediction, batches: Sequence[tuple[Batch, Targets]], step: int
) -> RepresentationTables:
    """Compute the similarity tables of one policy over all batches. `step` labels the result."""
    head, depth = policy.alignment_head, policy.config.policy_config.depth
    assert head is not None
    sums = RepresentationSums(head, depth, aligned_teacher_layers(policy), run.device)
    for batch, targets in tqdm(batches, desc=f"step {step}", unit="batch", disable=None, leave=False):
        with run.autocast():
            layers = extract_layers(policy, batch, targets)
        sums.add(layers)
    return sums.tables(step)


def aligned_teacher_layers(policy: RocketForActionPrediction) -> list[int]:
    """Return the teacher layers of the policy's layer pairs without duplicates, in configuration order."""
    return list(dict.fromkeys(policy.config.alignment.teacher_layers))


def format_representations(analysis: RepresentationAnalysis) -> list[str]:
    """Return the lines that the command prints: the cosines of each step, without the CKA tables."""
    lines = []
    for tables in analysis.steps:
        cosines = zip(analysis.pairs, tables.projected, strict=True)
        text = ", ".join(f"{pair} {cosine:.3f}" for pair, cosine in cosines)
        lines.append(f"step {tables.step:<6} cosines of projected features and targets: {text}")
        for name, table in (("weights", tables.projector_weights), ("outputs", tables.projector_outputs)):
            if table is not None:
                cosine = mean_off_diagonal(table)
                lines.append(f"{'':11} mean cosine between the {name} of two projectors: {cosine:+.3f}")
    return lines


def mean_off_diagonal(table: list[list[float]]) -> float:
    """Return the mean of a square table without its diagonal."""
    size = len(table)
    return (sum(map(sum, table)) - sum(table[index][index] for index in range(size))) / (size * (size - 1))
