"""The heads of a depth probe, one for each layer: ridge regression, or a small network that tells finer depth.

Shapes: N frames, V cameras, T patches of a camera, K cells of a patch, C channels, L layers, n patches with a depth.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rocket_hf.ridge_regression import LinearSums, with_constant

Batch = tuple[dict[int, Tensor], Tensor]  # features (N, V, T, C) by layer, log-depth (N, V, T, K), NaN where unknown
Batches = Callable[..., Iterator[Batch]]

STRENGTHS = tuple(10.0**power for power in range(-7, 1))  # of a penalty, in units of the features' variances
FLATTEST = 1e-6  # of the mean variance: what a feature that never changes counts as,
SMALLEST = 1e-12  # and where none changes
PASSES, STEPS, RATE, HIDDEN, DETAIL = 8, 8, 2e-3, 128, 4  # steps of a batch in each pass


class RidgeHeads:
    """The mean log-depth of a patch, linear in its features, in closed form from one pass over the data."""

    detail = 1

    def fit(self, learning: Batches, choosing: Batches) -> dict[int, float]:
        """By layer, the error of what was chosen. The weights are then fitted again on both parts."""
        learned, chosen = (summed(batches()) for batches in (learning, choosing))
        self.weights: dict[int, Tensor] = {}
        errors = {}
        for layer, sums in learned.items():
            trials = [(chosen[layer].mean_squared_error(solved(sums, strength)), strength) for strength in STRENGTHS]
            error, strength = min(trials)
            self.weights[layer] = solved(sums + chosen[layer], strength)
            errors[layer] = error**0.5
        return errors

    def predict(self, features: dict[int, Tensor]) -> Tensor:
        """(L, N, V, T, 1)"""
        found = [with_constant(maps.flatten(0, 2)) @ self.weights[layer] for layer, maps in features.items()]
        size = next(iter(features.values())).shape[:3]
        return torch.stack([each.float().view(*size, 1).cpu() for each in found])


def summed(batches: Iterator[Batch]) -> dict[int, LinearSums]:
    sums: dict[int, LinearSums] = {}
    for features, wanted in batches:
        known = wanted.isfinite()
        for layer, maps in features.items():
            own = sums.setdefault(layer, LinearSums(maps.shape[-1], maps.device))
            own.add(*patches(maps, wanted, known))
    return sums


def patches(maps: Tensor, wanted: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """(n, C), and the log-depths of their only cells (n,)."""
    there = known.flatten().to(maps.device)
    return maps.flatten(0, 2)[there], wanted.flatten().to(maps.device)[there]


def solved(sums: LinearSums, strength: float) -> Tensor:
    variances = sums.variances()
    smallest = (FLATTEST * variances.mean()).clamp_min(SMALLEST)
    return sums.weights(strength * sums.count * variances.clamp_min(smallest))


class MlpHeads:
    """A depth map: 4 x 4 log-depths of each patch from its features alone, by one hidden layer and several passes."""

    detail = DETAIL

    def fit(self, learning: Batches, choosing: Batches) -> dict[int, float]:
        self.networks: dict[int, nn.Module] = {}
        self.generator = torch.Generator().manual_seed(0)
        for number in range(PASSES):
            for features, wanted in learning(seed=number):
                self.learn(features, wanted, 1 - number / PASSES)
        sums: dict[int, Tensor] = {layer: torch.zeros(2, dtype=torch.float64) for layer in self.networks}
        for features, wanted in choosing():
            known = wanted.isfinite()
            for layer, found in zip(features, self.predict(features), strict=True):
                squares = (found - wanted)[known].double().square()
                sums[layer] += torch.stack([squares.sum(), known.sum().double()])
        return {layer: (total / number).sqrt().item() for layer, (total, number) in sums.items()}

    @torch.enable_grad()
    def learn(self, features: dict[int, Tensor], wanted: Tensor, rate: float) -> None:
        """Several steps, each on some of the patches."""
        if not self.networks:
            self.start(features, wanted)
        self.optimizer.param_groups[0]["lr"] = RATE * rate
        places = torch.randperm(wanted[..., 0].numel(), generator=self.generator)
        depths = wanted.flatten(0, 2)
        for chosen in places.tensor_split(STEPS):
            known, target = depths[chosen].isfinite(), depths[chosen].nan_to_num()
            if known.any():
                self.step({layer: maps.flatten(0, 2)[chosen] for layer, maps in features.items()}, target, known)

    def step(self, features: dict[int, Tensor], target: Tensor, known: Tensor) -> None:
        """Of patches (n, C) by layer and what is known of their cells (n, K)."""
        losses = [
            F.huber_loss(self.networks[layer](each.float())[known], target.to(each.device)[known], delta=0.2)
            for layer, each in features.items()
        ]
        self.optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        self.optimizer.step()

    def start(self, features: dict[int, Tensor], wanted: Tensor) -> None:
        """Networks that begin at the mean of the first depths and read features by the scales of the first batch."""
        for layer, maps in features.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                network = DepthNetwork(maps.float().flatten(0, 2), wanted.shape[-1], wanted.nanmean().item())
            self.networks[layer] = network.to(maps.device)
        weights = [weight for network in self.networks.values() for weight in network.parameters()]
        self.optimizer = torch.optim.Adam(weights, RATE)

    def predict(self, features: dict[int, Tensor]) -> Tensor:
        """(L, N, V, T, K)"""
        with torch.no_grad():
            return torch.stack([self.networks[layer](maps.float()).cpu() for layer, maps in features.items()])


class DepthNetwork(nn.Module):
    mean: Tensor
    deviation: Tensor

    def __init__(self, features: Tensor, cells: int, start: float):
        """Of features (n, C), from which their scales are taken."""
        super().__init__()
        self.register_buffer("mean", features.mean(dim=0))
        self.register_buffer("deviation", features.std(dim=0).clamp_min(1e-6))
        self.fc1 = nn.Linear(features.shape[1], HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, cells)
        nn.init.constant_(self.fc2.bias, start)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1((features - self.mean) / self.deviation)))
