"""Layer selection strategies that measure the layers of a policy and a teacher on data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rocket_hf.errors import UserError
from rocket_hf.modeling.strict_config import suggest_name
from rocket_hf.training.vla.layers_by_depth import LayerPair, uniform

from .matching import best_matching, best_ordered_matching
from .measures import LayerTable, ResidualChange, hsic_table, neighbor_table, sample_tokens
from .recipe_output import write_change_table, write_similarity_table

TABLES = {"cka": (hsic_table, "CKA"), "mutual-knn": (neighbor_table, "mutual neighbors")}
SIMILARITY = "similarity"
CHANGES = ("largest", "smallest")
MAX_TOKENS = 512  # image tokens of a batch on which layers are compared


@dataclass
class LayerBatch:
    """Layers of both models at the same image tokens: B samples, V cameras, T tokens of a camera."""

    student: dict[int, Tensor]  # 0..depth, (B, V, T, D)
    teacher: dict[int, Tensor]  # 1..depth, (B, V, T, C); empty if only the student is measured
    camera_mask: Tensor  # (B, V)

    def token_mask(self) -> Tensor:
        """Return the mask (B, V, T) of tokens of present cameras at which the teacher, if any, has a target."""
        tokens = self.student[0].shape[2]
        mask = self.camera_mask.bool()[..., None].expand(-1, -1, tokens)
        for maps in list(self.teacher.values())[:1]:
            mask = mask & maps.ne(0).any(dim=-1)
        return mask


class SimilarityMeasure:
    """Similarity of each student layer to each teacher layer. The `sums` of several processes may be added.

    `ordered`: deeper student layers are paired with deeper teacher layers.
    """

    def __init__(
        self, strategy: str, student_depth: int, teacher_depth: int, device: torch.device,
        ordered: bool = True, seed: int = 0,
    ):  # fmt: skip
        batch_table, self.name = TABLES[strategy]
        self.student_depth, self.teacher_depth, self.ordered = student_depth, teacher_depth, ordered
        self.layers = LayerTable(student_depth + teacher_depth, batch_table, device)
        self.generator = torch.Generator().manual_seed(seed)

    def add(self, batch: LayerBatch) -> None:
        tokens = sample_tokens(batch.token_mask(), MAX_TOKENS, self.generator)
        layers = [batch.student[layer] for layer in range(1, self.student_depth + 1)]
        layers += [batch.teacher[layer] for layer in range(1, self.teacher_depth + 1)]
        self.layers.add([maps.flatten(0, 2)[tokens] for maps in layers])

    @property
    def sums(self) -> Tensor:
        return self.layers.sums

    def table(self) -> np.ndarray:
        """Return the similarities as (student layers, teacher layers)."""
        table = self.layers.table()
        return table[: self.student_depth, self.student_depth :].cpu().numpy()

    def pairs(self, count: int) -> list[LayerPair]:
        table = self.table()
        matching = best_ordered_matching(table, count) if self.ordered else best_matching(table, count)
        return [LayerPair(row + 1, column + 1, self.reason(table, row, column)) for row, column in matching]

    def reason(self, table: np.ndarray, row: int, column: int) -> str:
        best = int(table[row].argmax())
        rank = "its best" if best == column else f"its best is teacher layer {best + 1} with {table[row, best]:.3f}"
        return f"{self.name} {table[row, column]:.3f}, {rank}"

    def write(self, folder: Path, pairs: Sequence[LayerPair]) -> None:
        write_similarity_table(folder, self.table(), pairs, self.name)


class ChangeMeasure:
    """Change of the student's residual stream over each window of blocks. Teacher layers are selected uniformly."""

    def __init__(
        self, student_depth: int, teacher_depth: int, windows: Sequence[int], change: str, device: torch.device
    ):
        if change not in CHANGES:
            raise UserError(f"unknown value {change!r} of --change: {suggest_name(change, CHANGES)}")
        self.stream, self.change = ResidualChange(student_depth, windows, device), change
        self.teacher_depth = teacher_depth

    def add(self, batch: LayerBatch) -> None:
        self.stream.add(batch.student, batch.token_mask())

    @property
    def sums(self) -> Tensor:
        return self.stream.sums

    def table(self) -> np.ndarray:
        """Return the similarity of the stream before and after each window as (windows, student layers)."""
        return self.stream.similarity().cpu().numpy()

    def pairs(self, count: int) -> list[LayerPair]:
        """Select the layers at which the windows of the largest (or smallest) change end, for the first window size."""
        similarity, window = self.table()[0], self.stream.windows[0]
        ends = ranked_layers(similarity, count, self.change)
        blocks = "its block" if window == 1 else f"its last {window} blocks"
        return [
            LayerPair(
                end,
                teacher,
                f"similarity {similarity[end - 1]:.4f} before and after {blocks}, one of the {self.change} changes",
            )
            for end, teacher in zip(ends, uniform(self.teacher_depth, count)[0], strict=True)
        ]

    def write(self, folder: Path, pairs: Sequence[LayerPair]) -> None:
        write_change_table(folder, self.table(), self.stream.windows, pairs)


def ranked_layers(similarity: np.ndarray, count: int, change: str) -> list[int]:
    """Return the layers, ascending, with the lowest (largest change) or highest similarity to the stream before."""
    known = np.flatnonzero(~np.isnan(similarity))
    if count > len(known):
        raise UserError(
            f"{count} pairs are not possible, because a window ends at only {len(known)} layers: reduce --pairs or "
            "--windows"
        )
    order = known[np.argsort(similarity[known], kind="stable")]
    selected = order[:count] if change == "largest" else order[::-1][:count]
    return sorted(int(index) + 1 for index in selected)


def build_measure(
    strategy: str, depths: tuple[int, int], device: torch.device, ordered: bool, windows: Sequence[int], change: str
) -> SimilarityMeasure | ChangeMeasure:
    """Create the measure of a strategy. `depths` are those of the student and of the teacher."""
    if strategy == SIMILARITY:
        return ChangeMeasure(*depths, windows, change, device)
    return SimilarityMeasure(strategy, *depths, device, ordered)
