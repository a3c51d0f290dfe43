"""Agreement of the losses' gradients on their shared weights, measured at intervals during training.

A measurement takes one additional forward pass of one batch, and one backward pass per loss, down to the chosen
weights. It does not change the run: no gradient is stored, and the random state is restored.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.policy_interface import Batch

from ..data.batches import LoaderBatch
from ..recipe import VLARecipe
from .loss_gradients import agreement_metrics, cosine_table, loss_gradients, loss_terms
from .model_inputs import ModelInputs
from .shared_weights import NamedWeights, shared_weights
from .targets import Targets


@dataclass
class GradientAgreement:
    """Measurement of the agreement of gradients for one run."""

    policy: RocketForActionPrediction
    recipe: VLARecipe
    accelerator: Accelerator
    model_inputs: ModelInputs

    def is_due(self, step: int, alignment_weight: float) -> bool:
        """Return whether to measure in `step` (0-based); never while the alignment weight is 0, without targets."""
        every = self.recipe.analysis.gradient_agreement_every
        return every > 0 and (step + 1) % every == 0 and alignment_weight > 0

    def measure(self, raw: LoaderBatch) -> dict[str, Tensor]:
        """Return metrics named "agreement/NAME", see `agreement_metrics`.

        The gradients are averaged over the ranks, so two ranks measure what one rank with both batches would.
        """
        weights = shared_weights(self.policy, self.recipe.analysis.parameters)
        with restored_random_state(self.accelerator.device), uncompiled(self.recipe.run.compile):
            batch, images, warp = self.model_inputs.inputs(raw)
            targets = self.model_inputs.targets(raw, images, warp)
            assert targets is not None  # check_recipe requires an alignment
            with self.accelerator.autocast():
                _, table = loss_cosines(self.policy, batch, targets, weights, self.mean_over_ranks)
        return {f"agreement/{name}": value for name, value in agreement_metrics(table).items()}

    def mean_over_ranks(self, gradients: Tensor) -> Tensor:
        return self.accelerator.reduce(gradients, "mean")


def loss_cosines(
    policy: RocketForActionPrediction,
    batch: Batch,
    targets: Targets,
    weights: NamedWeights,
    average: Callable[[Tensor], Tensor] = lambda gradients: gradients,
) -> tuple[list[str], Tensor]:
    """Return the names of the losses, and the cosines between their gradients, (L, L)."""
    losses = loss_terms(policy(**batch, targets=targets).losses)
    gradients = loss_gradients(list(losses.values()), list(weights.values()))
    return list(losses), cosine_table(average(gradients))


@contextmanager
def restored_random_state(device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices, device_type="cuda"):
        yield


def uncompiled(is_compiled: bool) -> AbstractContextManager:
    """Run compiled layers eagerly: they free their saved tensors in the first of several backward passes."""
    return torch.compiler.set_stance("force_eager") if is_compiled else nullcontext()
