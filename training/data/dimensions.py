"""Places of a dataset's state and action dimensions among those of the policy.

The datasets of a mixture may come from robots with different joints. A dimension is identified by its name: all
datasets that name it use the same place of the policy's vector, and a dataset that lacks it leaves the place empty.
Datasets whose names say nothing about the others' (no names, or only unknown ones) are read in their own order.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class VectorDescription:
    """State or action of a dataset or policy: number of dimensions, and their names if they have different ones."""

    dim: int
    names: list[str] | None = None

    @classmethod
    def of(cls, dim: int, names: Sequence[str] | None) -> "VectorDescription":
        is_complete = names is not None and len(names) == dim == len(set(names))
        return cls(dim, list(names) if is_complete and names is not None else None)


def common_vector(vectors: Sequence[VectorDescription]) -> VectorDescription:
    """Return a vector with a place for every dimension of all vectors.

    It begins with the dimensions of the longest vector. Dimensions of another one are added if it shares names with
    the longest, but some of its names are new and the shared ones are at other places.
    """
    common = max(vectors, key=lambda vector: (vector.dim, vector.names is not None))
    for vector in vectors:
        if vector.names and common.names and not is_subset(vector, common) and not keeps_places(vector, common):
            new = [name for name in vector.names if name not in common.names]
            common = VectorDescription(common.dim + len(new), common.names + new)
    return common


def find_places(vector: VectorDescription, common: VectorDescription) -> list[int]:
    """Return the place of each dimension of a vector: by name if `common` has all its names, else in order."""
    if vector.names and common.names and is_subset(vector, common):
        return [common.names.index(name) for name in vector.names]
    return list(range(vector.dim))


def is_subset(vector: VectorDescription, common: VectorDescription) -> bool:
    return set(vector.names or ()) <= set(common.names or ())


def keeps_places(vector: VectorDescription, common: VectorDescription) -> bool:
    """Return whether each name that both vectors have is at the same place in both."""
    names = common.names or []
    return all(names.index(name) == index for index, name in enumerate(vector.names or []) if name in names)
