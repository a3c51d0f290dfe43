"""Strategies that look at a policy and a teacher on data: what they measure, and which pairs follow from that."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rocket_hf.errors import UserError
from rocket_hf.modeling.strict_config import nearest

from .by_depth import uniform
from .choice import Pair
from .matching import best_matching, best_ordered_matching
from .measures import ResidualChange, TableOfLayers, hsic_table, neighbor_table, sample_tokens
from .recipe_output import write_changes, write_similarities

TABLES = {"cka": (hsic_table, "CKA"), "mutual-knn": (neighbor_table, "mutual neighbors")}
SIMILARITY = "similarity"
CHANGES = ("largest", "smallest")
TOKENS = 512  # of a batch, between which layers are compared


@dataclass
class LayerBatch:
    """Layers of both models at the same image tokens. B samples, V cameras, T tokens of a camera."""

    student: dict[int, Tensor]  # 0..depth, (B, V, T, D)
    teacher: dict[int, Tensor]  # 1..depth, (B, V, T, C); none where only the student is looked at
    camera_mask: Tensor  # (B, V)

    def there(self) -> Tensor:
        """(B, V, T): tokens of cameras that exist, where the teacher, if there is one, has a target."""
        tokens = self.student[0].shape[2]
        there = self.camera_mask.bool()[..., None].expand(-1, -1, tokens)
        for maps in list(self.teacher.values())[:1]:
            there = there & maps.ne(0).any(dim=-1)
        return there


class Similarities:
    """Each student layer against each teacher layer. `sums` of several processes may be added."""

    def __init__(
        self, strategy: str, student_depth: int, teacher_depth: int, device: torch.device,
        ordered: bool = True, seed: int = 0,
    ):  # fmt: skip
        """`ordered`: deeper layers of the student have deeper partners."""
        of_batch, self.name = TABLES[strategy]
        self.student_depth, self.teacher_depth, self.ordered = student_depth, teacher_depth, ordered
        self.layers = TableOfLayers(student_depth + teacher_depth, of_batch, device)
        self.generator = torch.Generator().manual_seed(seed)

    def add(self, batch: LayerBatch) -> None:
        chosen = sample_tokens(batch.there(), TOKENS, self.generator)
        maps = [batch.student[layer] for layer in range(1, self.student_depth + 1)]
        maps += [batch.teacher[layer] for layer in range(1, self.teacher_depth + 1)]
        self.layers.add([each.flatten(0, 2)[chosen] for each in maps])

    @property
    def sums(self) -> Tensor:
        return self.layers.sums

    def table(self) -> np.ndarray:
        """(student layers, teacher layers)."""
        whole = self.layers.table()
        return whole[: self.student_depth, self.student_depth :].cpu().numpy()

    def pairs(self, count: int) -> list[Pair]:
        table = self.table()
        matching = best_ordered_matching(table, count) if self.ordered else best_matching(table, count)
        return [Pair(row + 1, column + 1, self.reason(table, row, column)) for row, column in matching]

    def reason(self, table: np.ndarray, row: int, column: int) -> str:
        best = int(table[row].argmax())
        own = "its best" if best == column else f"its best is teacher layer {best + 1} with {table[row, best]:.3f}"
        return f"{self.name} {table[row, column]:.3f}, {own}"

    def write(self, folder: Path, pairs: Sequence[Pair]) -> None:
        write_similarities(folder, self.table(), pairs, self.name)


class Changes:
    """How much each window of the student's blocks changes its stream. The teacher's layers are uniform."""

    def __init__(
        self, student_depth: int, teacher_depth: int, windows: Sequence[int], change: str, device: torch.device
    ):
        if change not in CHANGES:
            raise UserError(f"there is no change {change!r} to rank by: {nearest(change, CHANGES)}")
        self.stream, self.ranked = ResidualChange(student_depth, windows, device), change
        self.teacher_depth = teacher_depth

    def add(self, batch: LayerBatch) -> None:
        self.stream.add(batch.student, batch.there())

    @property
    def sums(self) -> Tensor:
        return self.stream.sums

    def table(self) -> np.ndarray:
        """(windows, student layers): the similarity before and after."""
        return self.stream.similarity().cpu().numpy()

    def pairs(self, count: int) -> list[Pair]:
        """By the first window: the layers at which windows of the largest, or of the smallest, change end."""
        similarity, window = self.table()[0], self.stream.windows[0]
        ends = ranked_layers(similarity, count, self.ranked)
        blocks = "its block leaves" if window == 1 else f"its last {window} blocks leave"
        return [
            Pair(end, teacher, f"{blocks} a similarity of {similarity[end - 1]:.4f}, one of the {self.ranked} changes")
            for end, teacher in zip(ends, uniform(self.teacher_depth, count)[0], strict=True)
        ]

    def write(self, folder: Path, pairs: Sequence[Pair]) -> None:
        write_changes(folder, self.table(), self.stream.windows, pairs)


def ranked_layers(similarity: np.ndarray, count: int, change: str) -> list[int]:
    """The layers, ascending, whose similarity to the stream before is lowest (largest change) or highest."""
    known = np.flatnonzero(~np.isnan(similarity))
    if count > len(known):
        raise UserError(f"only {len(known)} layers end a window, so {count} pairs cannot be made: take a smaller one")
    order = known[np.argsort(similarity[known], kind="stable")]
    chosen = order[:count] if change == "largest" else order[::-1][:count]
    return sorted(int(place) + 1 for place in chosen)


def make_measure(
    strategy: str, depths: tuple[int, int], device: torch.device, ordered: bool, windows: Sequence[int], change: str
) -> Similarities | Changes:
    """`depths` of the student and of the teacher."""
    if strategy == SIMILARITY:
        return Changes(*depths, windows, change, device)
    return Similarities(strategy, *depths, device, ordered)
