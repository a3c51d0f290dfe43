"""Normalization of states and actions: from robot units to numbers of order one, and back.

The formulas are lerobot's, so that its statistics and checkpoints mean the same here. A missing statistic is an error,
because a vector that silently stays in robot units could move a robot to a wrong place.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .errors import UserError
from .finite_checks import finite_flags, raise_if_not_finite

# Statistics that each normalization mode reads: mean and standard deviation, or the two values that become -1 and 1.
STATISTICS: dict[str, tuple[str, ...]] = {
    "identity": (),
    "mean_std": ("mean", "std"),
    "min_max": ("min", "max"),
    "quantile": ("q01", "q99"),
}
RANGE_MODES = ("min_max", "quantile")  # map a range to [-1, 1]
EPSILON = 1e-8  # added to deviations, and the range of dimensions whose range is empty
KNOWN_STATISTICS = frozenset(key for keys in STATISTICS.values() for key in keys)
# Deviations of dimensions that never moved. A state that moves later stays small; a predicted action stays constant.
CONSTANT_DEVIATIONS = {"state": 1.0, "action": 1e-8}
RANGES = (("min", "max"), ("q01", "q99"))  # the first must not exceed the second
ADVICE = "compute the statistics again"
# Replaces the deviation 0 of version 0.1.0. In float32, adding it to EPSILON or multiplying by it changes nothing.
SMALLEST_DEVIATION = 1e-30

Statistics = dict[str, list[float] | list[bool]]


def with_positive_deviations(statistics: Mapping[str, Statistics]) -> dict[str, Statistics]:
    """Return the statistics of a policy of version 0.1.0 in which no deviation is 0.

    That version stored 0 for a dimension that never moves: its actions are the mean, and its states are divided by
    EPSILON. Both stay so.
    """
    return {
        name: values | ({"std": [value or SMALLEST_DEVIATION for value in values["std"]]} if "std" in values else {})
        for name, values in statistics.items()
    }


class Normalizer:
    """Normalization of one vector, the state or the action.

    Args:
        name: "state" or "action", for error messages.
        dim: Length of the vector.
        mode: "identity", "mean_std", "min_max" or "quantile".
        statistics: Statistics by name, each with `dim` values. The optional "mask" is False for dimensions that stay
            unchanged, for instance a gripper.
        clip: Whether `normalize` clips values outside of the range of "min_max" or "quantile" to [-1, 1], as the public
            code of OpenVLA does in training and inference. Unchanged dimensions are not clipped.
    """

    def __init__(self, name: str, dim: int, mode: str, statistics: Statistics, clip: bool = False):
        self.name, self.dim, self.mode = name, dim, mode
        self.clips = clip and mode in RANGE_MODES
        if mode not in STATISTICS:
            raise UserError(f"{name}_normalization must be one of {', '.join(STATISTICS)}, got {mode!r}")
        for key in STATISTICS[mode]:
            if key not in statistics:
                present = ", ".join(statistics) or "none"
                raise UserError(
                    f"{name}_normalization={mode!r} needs the statistic {key!r} of the {name}; available: {present}"
                )
        for key in sorted(KNOWN_STATISTICS | {"mask"}):
            if key in statistics and len(statistics[key]) != dim:
                raise UserError(
                    f"the statistic {key!r} of the {name} has {len(statistics[key])} values, but {name}_dim is {dim}"
                )
        self.check_statistics(statistics)
        self.statistics = [torch.tensor(statistics[key], dtype=torch.float32) for key in STATISTICS[mode]]
        self.mask = torch.tensor(statistics.get("mask", [True] * dim))

    def check_statistics(self, statistics: Statistics) -> None:
        """Raise `UserError` if a value is not finite, a range is reversed or a deviation is not positive."""
        mask = statistics.get("mask", [True] * self.dim)
        if not all(isinstance(value, (bool, int)) for value in mask):
            raise UserError(f"the mask of the {self.name} must have values true and false, got {mask}: {ADVICE}")
        for key in KNOWN_STATISTICS & statistics.keys():
            for index, value in enumerate(statistics[key]):
                if not isinstance(value, (int, float)) or not math.isfinite(value):
                    raise UserError(
                        f"the statistic {key!r} of the {self.name} is {value} in dimension {index}: {ADVICE}"
                    )
        for low, high in RANGES:
            for index, (start, end) in enumerate(zip(statistics.get(low, []), statistics.get(high, []), strict=False)):
                if start > end:
                    raise UserError(
                        f"the {self.name} has the statistics {low}={start:g} and {high}={end:g} in dimension {index}, "
                        f"which are reversed: {ADVICE}"
                    )
        for index, (value, is_used) in enumerate(zip(statistics.get("std", []), mask, strict=False)):
            if value < 0 or (value == 0 and is_used and self.mode == "mean_std"):
                raise UserError(
                    f"the statistic 'std' of the {self.name} is {value:g} in dimension {index}, but deviations must be "
                    f"positive: {ADVICE}, or set it to 1 if this dimension never moves"
                )

    def normalize(self, vector: Tensor) -> Tensor:
        """Normalize a vector (..., dim) in robot units, and clip it as `clip` does."""
        self.check(vector)
        if self.mode == "identity":
            return vector
        first, second = (statistic.to(vector) for statistic in self.statistics)
        if self.mode == "mean_std":
            normalized = (vector - first) / (second + EPSILON)
        else:
            normalized = 2 * (vector - first) / self.span(first, second) - 1
        return self.clip(torch.where(self.mask.to(vector.device), normalized, vector))

    def clip(self, normalized: Tensor) -> Tensor:
        """Clip a normalized vector (..., dim) to [-1, 1] if the normalizer clips, except where the mask is False."""
        if not self.clips:
            return normalized
        return torch.where(self.mask.to(normalized.device), normalized.clamp(-1, 1), normalized)

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
        """Raise `UserError` if a vector does not have `dim` dimensions or is not finite."""
        if vector.shape[-1] != self.dim:
            raise UserError(f"the {self.name} has {vector.shape[-1]} dimensions, but the policy needs {self.dim}")
        raise_if_not_finite(finite_flags({self.name: vector}))
