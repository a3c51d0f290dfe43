"""Robot units to numbers of order one, and back.

The formulas are lerobot's, so that its statistics and its checkpoints mean the same here. What is missing is an error:
a vector that silently stays in robot units moves a robot.
"""

import torch
from torch import Tensor

# The statistics that each mode reads: a mean and a spread, or the two values that become -1 and 1.
STATISTICS: dict[str, tuple[str, ...]] = {
    "identity": (),
    "mean_std": ("mean", "std"),
    "min_max": ("min", "max"),
    "quantile": ("q01", "q99"),
}
SMALLEST = 1e-8

Statistics = dict[str, list[float] | list[bool]]


class Normalizer:
    """One vector, the state or the action, by one mode. `mask` in the statistics is False for dimensions to leave as
    they are, a gripper for instance."""

    def __init__(self, name: str, dim: int, mode: str, statistics: Statistics):
        self.name, self.dim, self.mode = name, dim, mode
        if mode not in STATISTICS:
            raise ValueError(f"{name}_normalization must be one of {', '.join(STATISTICS)}, got {mode!r}")
        for key in STATISTICS[mode]:
            if key not in statistics:
                there = ", ".join(statistics) or "nothing"
                raise ValueError(
                    f"{name} normalisation {mode!r} needs the statistic {key!r} of the {name}, which has only: {there}"
                )
        for key in (*STATISTICS[mode], "mask"):
            if key in statistics and len(statistics[key]) != dim:
                raise ValueError(
                    f"the statistic {key!r} of the {name} has {len(statistics[key])} values, {name}_dim is {dim}"
                )
        self.statistics = [torch.tensor(statistics[key], dtype=torch.float32) for key in STATISTICS[mode]]
        self.mask = torch.tensor(statistics.get("mask", [True] * dim))

    def normalize(self, vector: Tensor) -> Tensor:
        self.check(vector)
        if self.mode == "identity":
            return vector
        first, second = (statistic.to(vector) for statistic in self.statistics)
        if self.mode == "mean_std":
            normalised = (vector - first) / (second + SMALLEST)
        else:
            normalised = 2 * (vector - first) / self.span(first, second) - 1
        return torch.where(self.mask.to(vector.device), normalised, vector)

    def unnormalize(self, vector: Tensor) -> Tensor:
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
        """The distance of two statistics; a constant dimension is mapped to -1."""
        return torch.where(high == low, SMALLEST, high - low)

    def check(self, vector: Tensor) -> None:
        if vector.shape[-1] != self.dim:
            raise ValueError(f"the {self.name} has {vector.shape[-1]} dimensions, the policy was made for {self.dim}")
