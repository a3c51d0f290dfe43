"""Normalization of states and actions: from robot units to numbers of order one, and back.

The formulas are lerobot's, so that its statistics and checkpoints mean the same here. A missing statistic is an error,
because a vector that silently stays in robot units could move a robot to a wrong place.
"""

import torch
from torch import Tensor

from .errors import UserError

# Statistics that each normalization mode reads: mean and standard deviation, or the two values that become -1 and 1.
STATISTICS: dict[str, tuple[str, ...]] = {
    "identity": (),
    "mean_std": ("mean", "std"),
    "min_max": ("min", "max"),
    "quantile": ("q01", "q99"),
}
EPSILON = 1e-8

Statistics = dict[str, list[float] | list[bool]]


class Normalizer:
    """Normalization of one vector, the state or the action.

    Args:
        name: "state" or "action", for error messages.
        dim: Length of the vector.
        mode: "identity", "mean_std", "min_max" or "quantile".
        statistics: Statistics by name, each with `dim` values. The optional "mask" is False for dimensions that stay
            unchanged, for instance a gripper.
    """

    def __init__(self, name: str, dim: int, mode: str, statistics: Statistics):
        self.name, self.dim, self.mode = name, dim, mode
        if mode not in STATISTICS:
            raise UserError(f"{name}_normalization must be one of {', '.join(STATISTICS)}, got {mode!r}")
        for key in STATISTICS[mode]:
            if key not in statistics:
                present = ", ".join(statistics) or "none"
                raise UserError(
                    f"{name}_normalization={mode!r} needs the statistic {key!r} of the {name}; available: {present}"
                )
        for key in (*STATISTICS[mode], "mask"):
            if key in statistics and len(statistics[key]) != dim:
                raise UserError(
                    f"the statistic {key!r} of the {name} has {len(statistics[key])} values, but {name}_dim is {dim}"
                )
        self.statistics = [torch.tensor(statistics[key], dtype=torch.float32) for key in STATISTICS[mode]]
        self.mask = torch.tensor(statistics.get("mask", [True] * dim))

    def normalize(self, vector: Tensor) -> Tensor:
        """Convert a vector (..., dim) from robot units."""
        self.check(vector)
        if self.mode == "identity":
            return vector
        first, second = (statistic.to(vector) for statistic in self.statistics)
        if self.mode == "mean_std":
            normalized = (vector - first) / (second + EPSILON)
        else:
            normalized = 2 * (vector - first) / self.span(first, second) - 1
        return torch.where(self.mask.to(vector.device), normalized, vector)

    def unnormalize(self, vector: Tensor) -> Tensor:
        """Convert a normalized vector (..., dim) to robot units."""
        self.check(vector)
        if self.mode == "identity":
            return vector
        first, second = (statistic.to(vector) for statistic in self.statistics)
        if self.mode == "mean_std":
            raw = vector * second + first
        else:
            raw = (vector + 1) / 2 * self.span(first, second) + first
        return torch.where(self.mask.to(vector.device), raw, vector)

    def span(self, low: Tensor, high: Tensor) -> Tensor:
        """Return high - low, or a small number where they are equal: a constant dimension is normalized to -1."""
        return torch.where(high == low, EPSILON, high - low)

    def check(self, vector: Tensor) -> None:
        if vector.shape[-1] != self.dim:
            raise UserError(f"the {self.name} has {vector.shape[-1]} dimensions, but the policy needs {self.dim}")
