"""Ridge regression from sums over batches, so that memory does not grow with the number of samples.

Shapes: n samples, C features. An unpenalized constant is added to the features.
"""

import torch
from torch import Tensor


class LinearSums:
    """Sufficient statistics of a least squares problem in float64. Sums of two parts of the data can be added."""

    def __init__(self, features: int, device: torch.device | str = "cpu"):
        width = features + 1
        self.gram = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.moment = torch.zeros(width, dtype=torch.float64, device=device)
        self.square = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, features: Tensor, target: Tensor) -> None:
        """Add samples: features (n, C) and targets (n,)."""
        inputs, target = with_constant(features), target.double()
        self.gram += inputs.T @ inputs
        self.moment += inputs.T @ target
        self.square += target.square().sum()

    def __add__(self, other: "LinearSums") -> "LinearSums":
        both = LinearSums(len(self.moment) - 1, self.gram.device)
        both.gram, both.moment = self.gram + other.gram, self.moment + other.moment
        both.square = self.square + other.square
        return both

    @property
    def count(self) -> float:
        return self.gram[-1, -1].item()

    def variances(self) -> Tensor:
        """Return the variance of each feature, (C,)."""
        mean = self.gram[-1, :-1] / self.count
        return (self.gram.diagonal()[:-1] / self.count - mean.square()).clamp_min(0)

    def weights(self, penalties: Tensor) -> Tensor:
        """Return the weights (C + 1,) that minimize squared errors plus penalties (C,) times squared weights.

        The weight of the constant is last.
        """
        diagonal = torch.cat([penalties.to(self.gram), self.gram.new_zeros(1)])
        return torch.linalg.solve(self.gram + diagonal.diag(), self.moment)

    def mean_squared_error(self, weights: Tensor) -> float:
        """Return the mean squared error of these weights on the added samples, computed from the sums."""
        error = weights @ self.gram @ weights - 2 * (weights @ self.moment) + self.square
        return max(0.0, error.item()) / self.count


def with_constant(features: Tensor) -> Tensor:
    return torch.cat([features.double(), features.new_ones(len(features), 1).double()], dim=1)
