"""A fixed projection of each layer's features to fewer dimensions: the principal components of the dataset's features.

The second moment is not centerd. The alignment compares directions from zero, so what the projection should keep is the
length of the features themselves, not that of their differences from the mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from rocket_hf.errors import UserError
from rocket_hf.files import write_atomically

PROJECTION = "projection.safetensors"


class SecondMoment:
    """The sum of x x^T over the tokens of each layer, (C, C), taken up batch by batch in float64."""

    def __init__(self, layers: Sequence[int], channels: int):
        self.sums = {layer: torch.zeros(channels, channels, dtype=torch.float64) for layer in layers}

    def add(self, maps: Mapping[int, Tensor]) -> None:
        for layer, features in maps.items():
            tokens = features.flatten(0, -2).float()  # (tokens, C)
            self.sums[layer] += (tokens.T @ tokens).double().cpu()

    def principal_components(self, width: int) -> "Projections":
        matrices, kept = {}, {}
        for layer, moment in self.sums.items():
            if not moment.isfinite().all():
                raise UserError(f"the teacher gives numbers that are not finite at layer {layer}: try --dtype float32")
            shares, directions = torch.linalg.eigh(moment)  # ascending
            matrices[layer] = directions[:, -width:].flip(1).float().contiguous()
            kept[layer] = round((shares[-width:].sum() / shares.sum()).item(), 6)
        return Projections(matrices, kept)


@dataclass(frozen=True)
class Projections:
    matrices: dict[int, Tensor]  # by layer: (C, width), orthonormal columns, the strongest first
    kept: dict[int, float]  # by layer: the share of the squared length of the features that it keeps

    def save(self, folder: Path) -> None:
        content = save({str(layer): matrix for layer, matrix in self.matrices.items()})
        write_atomically(folder / PROJECTION, lambda path: path.write_bytes(content))


def file_digest(folder: Path) -> str:
    return sha256((folder / PROJECTION).read_bytes()).hexdigest()


def load_matrices(folder: Path, digest: str) -> dict[int, Tensor]:
    """By layer, (C, width), once the file is seen to be the one that the manifest states."""
    path = folder / PROJECTION
    if not path.is_file() or file_digest(folder) != digest:
        raise UserError(f"{path} is missing or not the one that this cache was made with: build the cache again")
    return {int(layer): matrix for layer, matrix in load_file(path).items()}
