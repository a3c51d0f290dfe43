"""Similarity of a policy's layers to each other, to the teacher's layers, and of projected features to their targets.

Shapes: B samples, V cameras, T tokens of a camera, D width of the residual stream, C width of the targets, n tokens
with a target; L student layers (0: embeddings), M teacher layers, P pairs.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rocket_hf.files import create_folder, write_text
from rocket_hf.heatmap import write_heatmap, write_table
from rocket_hf.layer_selection.by_measure import MAX_TOKENS, LayerBatch
from rocket_hf.layer_selection.measures import LayerTable, hsic_table, sample_tokens
from rocket_hf.modeling.alignment_head import AlignmentHead

Table = list[list[float]]
STUDENT, TEACHER, PAIR, STEP = "student layer", "teacher layer", "layer pair", "step"


@dataclass
class RepresentationTables:
    """Similarity tables of a run at one step."""

    step: int
    student_teacher: Table  # (L, M), CKA
    student: Table  # (L, L), CKA
    projected: list[float]  # P, mean cosine of projected features and targets
    projector_weights: Table | None  # (P, P), cosines; None if all pairs share one projector
    projector_outputs: Table | None  # (P, P), mean cosine of the projectors' outputs for the same tokens


class RepresentationSums:
    """Running sums of the similarity tables over batches. `head` is the run's own, on the device of the features."""

    def __init__(self, head: AlignmentHead, depth: int, teacher_layers: Sequence[int], device: torch.device):
        self.head, self.student, self.teacher = head, range(depth + 1), list(teacher_layers)
        self.cka = LayerTable(depth + 1 + len(self.teacher), hsic_table, device)
        self.generator = torch.Generator().manual_seed(0)
        pairs = len(head.pairs)
        self.projected = torch.zeros(pairs, dtype=torch.float64, device=device)
        self.outputs = torch.zeros(pairs, pairs, dtype=torch.float64, device=device)
        self.tokens = self.batches = 0

    @torch.no_grad()
    def add(self, batch: LayerBatch) -> None:
        mask = batch.token_mask()
        tokens = sample_tokens(mask, MAX_TOKENS, self.generator)
        layers = [batch.student[layer] for layer in self.student] + [batch.teacher[layer] for layer in self.teacher]
        self.cka.add([maps.flatten(0, 2)[tokens] for maps in layers])
        self.projected += projected_cosines(self.head, batch)
        if len(self.head.projectors) > 1:
            self.outputs += output_cosines(self.head, [batch.student[layer][mask] for layer in self.head.taps])
        self.batches += 1
        self.tokens += int(mask.sum())

    def tables(self, step: int) -> RepresentationTables:
        table, students = self.cka.table().cpu(), len(self.student)
        has_independent_projectors = len(self.head.projectors) > 1
        return RepresentationTables(
            step,
            table[:students, students:].tolist(),
            table[:students, :students].tolist(),
            (self.projected / self.batches).tolist(),
            weight_cosines(self.head).tolist() if has_independent_projectors else None,
            (self.outputs / self.tokens).tolist() if has_independent_projectors else None,
        )


def projected_cosines(head: AlignmentHead, batch: LayerBatch) -> Tensor:
    """Return the cosine of projected features and targets of each pair, (P,): 1 - the pair's training loss."""
    losses = head({layer: batch.student[layer] for layer in head.taps}, batch.teacher, batch.camera_mask)
    return 1 - torch.stack([losses[f"alignment/{student}-{teacher}"] for student, teacher in head.pairs])


def output_cosines(head: AlignmentHead, inputs: Sequence[Tensor]) -> Tensor:
    """Return the cosines (P, P) between the outputs of two projectors for the same tokens.

    They are summed over tokens and averaged over `inputs`, the tokens of each layer, (n, D).
    """
    total = torch.zeros(len(head.projectors), len(head.projectors), dtype=torch.float64, device=inputs[0].device)
    for tokens in inputs:
        projectors = zip(head.projectors, head.widths, strict=True)
        outputs = [F.normalize(projector(tokens, width).double(), dim=-1) for projector, width in projectors]
        flat = torch.stack(outputs).flatten(1)  # (P, n x C)
        total += flat @ flat.T
    return total / len(inputs)


def weight_cosines(head: AlignmentHead) -> Tensor:
    """Return the cosines (P, P) between the flattened weights of two projectors; near 0 for independent weights."""
    matrices = ("fc1.weight", "fc2.weight")
    rows = [torch.cat([each.get_parameter(name).flatten() for name in matrices]) for each in head.projectors]
    unit = F.normalize(torch.stack(rows).detach().double(), dim=1)
    return unit @ unit.T


class LabeledTable(NamedTuple):
    """Table with the names of its rows and columns, the labels of its axes and a title."""

    values: Table
    rows: list[str]
    columns: list[str]
    labels: tuple[str, str]
    title: str


def write_representations(
    folder: Path, steps: Sequence[RepresentationTables], pairs: Sequence[str], teacher_layers: Sequence[int],
    about: dict[str, Any],
) -> list[str]:  # fmt: skip
    """Write representations.json, and each table of each step as CSV and heat map; return the CSV and JSON names."""
    create_folder(folder)
    tables = {name: table for step in steps for name, table in labeled_tables(step, pairs, teacher_layers).items()}
    title = "cosine of projected features and targets"
    projected, names = [step.projected for step in steps], [str(step.step) for step in steps]
    tables["projected"] = LabeledTable(projected, names, list(pairs), (STEP, PAIR), title)
    for name, (values, rows, columns, labels, title) in tables.items():
        write_table(folder / f"{name}.csv", np.array(values), rows, columns, labels[0])
        limits = (0.0, 1.0) if "CKA" in title else (-1.0, 1.0)
        write_heatmap(folder / f"{name}.png", np.array(values), rows, columns, labels, title, limits=limits)
    content = {"pairs": list(pairs), "teacher_layers": list(teacher_layers), "steps": [asdict(step) for step in steps]}
    write_text(folder / "representations.json", json.dumps(about | content, indent=1))
    return ["representations.json", *(f"{name}.csv" for name in tables)]


def labeled_tables(
    step: RepresentationTables, pairs: Sequence[str], teacher_layers: Sequence[int]
) -> dict[str, LabeledTable]:
    """Return the tables of a step by the name of their file."""
    suffix, layers = f"step {step.step}", [str(layer) for layer in range(len(step.student))]
    columns = [str(layer) for layer in teacher_layers]
    tables = {
        "student-teacher": LabeledTable(step.student_teacher, layers, columns, (STUDENT, TEACHER), f"CKA, {suffix}"),
        "student": LabeledTable(step.student, layers, layers, (STUDENT, STUDENT), f"CKA, {suffix}"),
    }
    projectors = {
        "projector-weights": (step.projector_weights, "cosine of projectors' weights"),
        "projector-outputs": (step.projector_outputs, "cosine of projectors' outputs"),
    }
    for name, (values, title) in projectors.items():
        if values is not None:
            tables[name] = LabeledTable(values, list(pairs), list(pairs), (PAIR, PAIR), f"{title}, {suffix}")
    return {f"{name}-{step.step:08d}": table for name, table in tables.items()}
