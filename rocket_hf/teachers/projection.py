"""Fixed projection of each layer's features to fewer dimensions: the principal components of the dataset's features.

The second moment is not centered. The alignment loss compares directions from zero, so the projection should preserve
the length of the features themselves, not of their differences from the mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from rocket_hf.errors import UserError
from rocket_hf.files import write_atomically

from .cache_manifest import Manifest

PROJECTION = "projection.safetensors"


class SecondMoment:
    """Sum of x x^T over the tokens of each layer, (C, C), accumulated batch by batch in float64."""

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
                raise UserError(f"the teacher returned non-finite features at layer {layer}: try --dtype float32")
            eigenvalues, eigenvectors = torch.linalg.eigh(moment)  # ascending
            matrices[layer] = eigenvectors[:, -width:].flip(1).float().contiguous()
            kept[layer] = round((eigenvalues[-width:].sum() / eigenvalues.sum()).item(), 6)
        return Projections(matrices, kept)


@dataclass(frozen=True)
class Projections:
    """Projection matrix of each layer, and how much of the features it keeps."""

    matrices: dict[int, Tensor]  # (C, width) for each layer: orthonormal columns, largest eigenvalue first
    kept: dict[int, float]  # for each layer, the share of the features' squared length that the projection keeps

    def save(self, folder: Path) -> None:
        content = save({str(layer): matrix for layer, matrix in self.matrices.items()})
        write_atomically(folder / PROJECTION, lambda path: path.write_bytes(content))


def projection_digest(folder: Path) -> str:
    return sha256((folder / PROJECTION).read_bytes()).hexdigest()


def load_matrices(folder: Path, digest: str) -> dict[int, Tensor]:
    """Return the matrix (C, width) of each layer, after checking the file against the digest in the manifest."""
    path = folder / PROJECTION
    try:
        if projection_digest(folder) == digest:
            return {int(layer): matrix for layer, matrix in load_file(path).items()}
    except FileNotFoundError:
        pass
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}): build the cache again") from None
    raise UserError(f"{path} is missing, or is not the file that this cache was built with: build the cache again")


def verify_projection(folder: Path, manifest: Manifest) -> None:
    """Check the projection file of a cache: its digest, its layers, and the shapes and values of its matrices."""
    assert manifest.projection is not None
    matrices, path = load_matrices(folder, manifest.projection), folder / PROJECTION
    if matrices.keys() != set(manifest.layers):
        raise UserError(
            f"{path} has matrices for the layers {sorted(matrices)}, and the manifest lists {sorted(manifest.layers)}: "
            "build the cache again"
        )
    for layer, matrix in matrices.items():
        expected = (manifest.channels, manifest.width)
        if tuple(matrix.shape) != expected or not matrix.isfinite().all():
            raise UserError(
                f"the matrix of layer {layer} in {path} must have shape {expected} and finite values, and has shape "
                f"{tuple(matrix.shape)}: build the cache again"
            )
