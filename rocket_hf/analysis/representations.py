"""What a policy's layers resemble: each other, the teacher's, and through its projectors their targets.

Shapes: B samples, V cameras, T tokens of a camera, D width of the stream, C of the targets, n tokens with a target;
L student layers (0 the embeddings), M teacher layers, P pairs.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rocket_hf.files import write_text
from rocket_hf.heatmap import write_heatmap, write_table
from rocket_hf.layer_selection.by_measure import TOKENS, LayerBatch
from rocket_hf.layer_selection.measures import TableOfLayers, hsic_table, sample_tokens
from rocket_hf.modeling.alignment_head import AlignmentHead

Table = list[list[float]]
STUDENT, TEACHER, PAIR, STEP = "student layer", "teacher layer", "layer pair", "step"


@dataclass
class Representations:
    """Of a run at one step."""

    step: int
    student_teacher: Table  # (L, M), CKA
    student: Table  # (L, L), CKA
    projected: list[float]  # P, the mean cosine of projected features and targets
    projector_weights: Table | None  # (P, P), cosines; None where all pairs share one projector
    projector_outputs: Table | None  # (P, P), the mean cosine of what they make of the same tokens


class Resemblances:
    """Sums over batches. `head` is the run's own, on the device of the features."""

    def __init__(self, head: AlignmentHead, depth: int, teacher_layers: Sequence[int], device: torch.device):
        self.head, self.student, self.teacher = head, range(depth + 1), list(teacher_layers)
        self.cka = TableOfLayers(depth + 1 + len(self.teacher), hsic_table, device)
        self.generator = torch.Generator().manual_seed(0)
        pairs = len(head.pairs)
        self.projected = torch.zeros(pairs, dtype=torch.float64, device=device)
        self.outputs = torch.zeros(pairs, pairs, dtype=torch.float64, device=device)
        self.tokens = self.batches = 0

    @torch.no_grad()
    def add(self, batch: LayerBatch) -> None:
        there = batch.there()
        chosen = sample_tokens(there, TOKENS, self.generator)
        maps = [batch.student[layer] for layer in self.student] + [batch.teacher[layer] for layer in self.teacher]
        self.cka.add([each.flatten(0, 2)[chosen] for each in maps])
        self.projected += projected_cosines(self.head, batch)
        if len(self.head.projectors) > 1:
            self.outputs += output_cosines(self.head, [batch.student[layer][there] for layer in self.head.taps])
        self.batches += 1
        self.tokens += int(there.sum())

    def at(self, step: int) -> Representations:
        table, split = self.cka.table().cpu(), len(self.student)
        independent = len(self.head.projectors) > 1
        return Representations(
            step,
            table[:split, split:].tolist(),
            table[:split, :split].tolist(),
            (self.projected / self.batches).tolist(),
            weight_cosines(self.head).tolist() if independent else None,
            (self.outputs / self.tokens).tolist() if independent else None,
        )


def projected_cosines(head: AlignmentHead, batch: LayerBatch) -> Tensor:
    """(P,): what the losses of training leave of 1, and so averaged as they are."""
    losses = head({layer: batch.student[layer] for layer in head.taps}, batch.teacher, batch.camera_mask)
    return 1 - torch.stack([losses[f"alignment/{student}-{teacher}"] for student, teacher in head.pairs])


def output_cosines(head: AlignmentHead, inputs: Sequence[Tensor]) -> Tensor:
    """Of each two projectors, the sum over tokens of the cosine of what they make of them; the mean over inputs, each
    (n, D)."""
    total = torch.zeros(len(head.projectors), len(head.projectors), dtype=torch.float64, device=inputs[0].device)
    for tokens in inputs:
        projectors = zip(head.projectors, head.widths, strict=True)
        made = [F.normalize(projector(tokens, width).double(), dim=-1) for projector, width in projectors]
        flat = torch.stack(made).flatten(1)  # (P, n x C)
        total += flat @ flat.T
    return total / len(inputs)


def weight_cosines(head: AlignmentHead) -> Tensor:
    """Of each two projectors: between all numbers of their two matrices. Two that were drawn apart are near 0."""
    matrices = ("fc1.weight", "fc2.weight")
    rows = [torch.cat([each.get_parameter(name).flatten() for name in matrices]) for each in head.projectors]
    unit = F.normalize(torch.stack(rows).detach().double(), dim=1)
    return unit @ unit.T


def write_representations(
    folder: Path, found: Sequence[Representations], pairs: Sequence[str], teacher: Sequence[int], about: dict[str, Any]
) -> list[str]:
    """representations.json; a CSV and a heat map of each table, named by its step; the names of all files."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {name: table for each in found for name, table in tables_of(each, pairs, teacher).items()}
    tables["projected"] = ([each.projected for each in found], [str(each.step) for each in found], list(pairs),
                           (STEP, PAIR), "cosine of projected features and targets")  # fmt: skip
    for name, (values, rows, columns, labels, title) in tables.items():
        write_table(folder / f"{name}.csv", np.array(values), rows, columns, labels[0])
        limits = (0.0, 1.0) if "CKA" in title else (-1.0, 1.0)
        write_heatmap(folder / f"{name}.png", np.array(values), rows, columns, labels, title, limits=limits)
    steps = [asdict(each) for each in found]
    text = json.dumps(about | {"pairs": list(pairs), "teacher_layers": list(teacher), "steps": steps}, indent=1)
    write_text(folder / "representations.json", text)
    return ["representations.json", *(f"{name}.csv" for name in tables)]


def tables_of(each: Representations, pairs: Sequence[str], teacher: Sequence[int]) -> dict[str, tuple]:
    """Values, names of rows and columns, labels and title by the name of the file."""
    step, layers = f"step {each.step}", [str(layer) for layer in range(len(each.student))]
    columns = [str(layer) for layer in teacher]
    tables = {
        "student-teacher": (each.student_teacher, layers, columns, (STUDENT, TEACHER), f"CKA, {step}"),
        "student": (each.student, layers, layers, (STUDENT, STUDENT), f"CKA, {step}"),
    }
    own = {
        "projector-weights": (each.projector_weights, "cosine of projectors' weights"),
        "projector-outputs": (each.projector_outputs, "cosine of projectors' outputs"),
    }
    for name, (values, title) in own.items():
        if values is not None:
            tables[name] = (values, list(pairs), list(pairs), (PAIR, PAIR), f"{title}, {step}")
    return {f"{name}-{each.step:08d}": table for name, table in tables.items()}
