"""Heads of a depth probe, one for each layer: ridge regression, or a small MLP that predicts finer depth maps.

Shapes: N frames, V cameras, T patches of a camera, K cells of a patch, C channels, L layers, n selected patches
of all frames and cameras.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rocket_hf.ridge_regression import LinearSums, with_constant

ProbeBatch = tuple[dict[int, Tensor], Tensor]  # features (N, V, T, C) by layer; log-depth (N, V, T, K), NaN if unknown
BatchFactory = Callable[..., Iterator[ProbeBatch]]  # starts a pass over the data, in random order if it gets a seed

PENALTIES = tuple(10.0**power for power in range(-7, 1))  # ridge penalties in units of the features' variances
# Lower bound of a feature's variance, so that constant features are penalized too: relative to the mean variance, and
# absolute if all features are constant.
MIN_RELATIVE_VARIANCE, MIN_VARIANCE = 1e-6, 1e-12
# Training and size of `MlpHeads`.
EPOCHS, STEPS_PER_BATCH, LEARNING_RATE, HIDDEN, CELLS_PER_SIDE = 8, 8, 2e-3, 128, 4


class RidgeHeads:
    """Linear heads that predict the mean log-depth of a patch, fitted in closed form in one pass over the data."""

    cells_per_side = 1

    def fit(self, train: BatchFactory, validation: BatchFactory) -> dict[int, float]:
        """Select the penalty of each layer on the validation part and return its root mean squared error there.

        The weights are then fitted again on both parts.
        """
        train_sums, validation_sums = (accumulate_sums(batches()) for batches in (train, validation))
        self.weights: dict[int, Tensor] = {}
        errors = {}
        for layer, sums in train_sums.items():
            held_out = validation_sums[layer]
            trials = [(held_out.mean_squared_error(solve_ridge(sums, penalty)), penalty) for penalty in PENALTIES]
            error, penalty = min(trials)
            self.weights[layer] = solve_ridge(sums + held_out, penalty)
            errors[layer] = error**0.5
        return errors

    def predict(self, features: dict[int, Tensor]) -> Tensor:
        """Return log-depths (L, N, V, T, 1)."""
        predicted = [with_constant(maps.flatten(0, 2)) @ self.weights[layer] for layer, maps in features.items()]
        size = next(iter(features.values())).shape[:3]
        return torch.stack([values.float().view(*size, 1).cpu() for values in predicted])


def accumulate_sums(batches: Iterator[ProbeBatch]) -> dict[int, LinearSums]:
    """Return the sums over all patches with a known depth from which `solve_ridge` fits each layer's weights."""
    sums: dict[int, LinearSums] = {}
    for features, target in batches:
        is_known = target.isfinite()
        for layer, maps in features.items():
            layer_sums = sums.setdefault(layer, LinearSums(maps.shape[-1], maps.device))
            layer_sums.add(*known_patches(maps, target, is_known))
    return sums


def known_patches(maps: Tensor, target: Tensor, is_known: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (n, C) and log-depths (n,) of the patches with a known depth."""
    mask = is_known.flatten().to(maps.device)
    return maps.flatten(0, 2)[mask], target.flatten().to(maps.device)[mask]


def solve_ridge(sums: LinearSums, penalty: float) -> Tensor:
    """Return the weights of ridge regression with a penalty in units of each feature's variance."""
    variances = sums.variances()
    minimum = (MIN_RELATIVE_VARIANCE * variances.mean()).clamp_min(MIN_VARIANCE)
    return sums.weights(penalty * sums.count * variances.clamp_min(minimum))


class MlpHeads:
    """MLP heads that predict 4 x 4 log-depths of each patch from its features, trained over several epochs."""

    cells_per_side = CELLS_PER_SIDE

    def fit(self, train: BatchFactory, validation: BatchFactory) -> dict[int, float]:
        """Train one network per layer and return its root mean squared error on the validation part."""
        self.networks: dict[int, nn.Module] = {}
        self.generator = torch.Generator().manual_seed(0)
        for epoch in range(EPOCHS):
            for features, target in train(seed=epoch):
                self.train_on_batch(features, target, 1 - epoch / EPOCHS)
        sums: dict[int, Tensor] = {layer: torch.zeros(2, dtype=torch.float64) for layer in self.networks}
        for features, target in validation():
            is_known = target.isfinite()
            for layer, predicted in zip(features, self.predict(features), strict=True):
                squares = (predicted - target)[is_known].double().square()
                sums[layer] += torch.stack([squares.sum(), is_known.sum().double()])
        return {layer: (total / count).sqrt().item() for layer, (total, count) in sums.items()}

    @torch.enable_grad()
    def train_on_batch(self, features: dict[int, Tensor], target: Tensor, rate_factor: float) -> None:
        """Take several optimizer steps, each on a random part of the patches."""
        if not self.networks:
            self.create_networks(features, target)
        self.optimizer.param_groups[0]["lr"] = LEARNING_RATE * rate_factor
        order = torch.randperm(target[..., 0].numel(), generator=self.generator)
        depths = target.flatten(0, 2)
        for rows in order.tensor_split(STEPS_PER_BATCH):
            is_known, known_depths = depths[rows].isfinite(), depths[rows].nan_to_num()
            if is_known.any():
                chunk = {layer: maps.flatten(0, 2)[rows] for layer, maps in features.items()}
                self.optimizer_step(chunk, known_depths, is_known)

    def optimizer_step(self, features: dict[int, Tensor], target: Tensor, is_known: Tensor) -> None:
        """Update all networks on features (n, C) by layer and log-depths (n, K), of which `is_known` (n, K) count."""
        losses = [
            F.huber_loss(self.networks[layer](values.float())[is_known], target.to(values.device)[is_known], delta=0.2)
            for layer, values in features.items()
        ]
        self.optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        self.optimizer.step()

    def create_networks(self, features: dict[int, Tensor], target: Tensor) -> None:
        """Create the networks. They normalize features by the first batch and initially predict its mean log-depth."""
        for layer, maps in features.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                network = DepthMlp(maps.float().flatten(0, 2), target.shape[-1], target.nanmean().item())
            self.networks[layer] = network.to(maps.device)
        weights = [weight for network in self.networks.values() for weight in network.parameters()]
        self.optimizer = torch.optim.Adam(weights, LEARNING_RATE)

    def predict(self, features: dict[int, Tensor]) -> Tensor:
        """Return log-depths (L, N, V, T, K)."""
        with torch.no_grad():
            return torch.stack([self.networks[layer](maps.float()).cpu() for layer, maps in features.items()])


class DepthMlp(nn.Module):
    """MLP from the features of a patch to the log-depths of its cells. `features` (n, C) set the normalization.

    Its initial prediction is close to `initial_depth`, a log-depth.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: Tensor, cells: int, initial_depth: float):
        super().__init__()
        self.register_buffer("mean", features.mean(dim=0))
        self.register_buffer("deviation", features.std(dim=0).clamp_min(1e-6))
        self.fc1 = nn.Linear(features.shape[1], HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, cells)
        nn.init.constant_(self.fc2.bias, initial_depth)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1((features - self.mean) / self.deviation)))
