"""Ridge regression from sums over batches: memory does not grow with the number of samples.

C features; a constant is fitted beside them, which no penalty holds small.
"""

import torch
from torch import Tensor


class LinearSums:
    """All that least squares need to know of features and wanted numbers, in float64; sums of two parts add up."""

    def __init__(self, features: int, device: torch.device | str = "cpu"):
        width = features + 1
        self.gram = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.moment = torch.zeros(width, dtype=torch.float64, device=device)
        self.square = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, features: Tensor, wanted: Tensor) -> None:
        """Features (n, C), wanted (n,)."""
        inputs, wanted = with_constant(features), wanted.double()
        self.gram += inputs.T @ inputs
        self.moment += inputs.T @ wanted
        self.square += wanted.square().sum()

    def __add__(self, other: "LinearSums") -> "LinearSums":
        both = LinearSums(len(self.moment) - 1, self.gram.device)
        both.gram, both.moment = self.gram + other.gram, self.moment + other.moment
        both.square = self.square + other.square
        return both

    @property
    def count(self) -> float:
        return self.gram[-1, -1].item()

    def variances(self) -> Tensor:
        """Of each feature, (C,)."""
        mean = self.gram[-1, :-1] / self.count
        return (self.gram.diagonal()[:-1] / self.count - mean.square()).clamp_min(0)

    def weights(self, penalties: Tensor) -> Tensor:
        """(C + 1,), the constant last: least squares plus each squared weight times its penalty (C,)."""
        held = torch.cat([penalties.to(self.gram), self.gram.new_zeros(1)])
        return torch.linalg.solve(self.gram + held.diag(), self.moment)

    def mean_squared_error(self, weights: Tensor) -> float:
        """Of what these weights predict here, with nothing but the sums."""
        error = weights @ self.gram @ weights - 2 * (weights @ self.moment) + self.square
        return max(0.0, error.item()) / self.count


def with_constant(features: Tensor) -> Tensor:
    return torch.cat([features.double(), features.new_ones(len(features), 1).double()], dim=1)
