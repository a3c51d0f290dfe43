"""Whether the losses of a run agree about its shared weights, measured now and then while it trains.

One more forward pass of one batch, and one backward pass per loss that goes no further than the chosen weights. The run
itself is not touched: no gradient is kept, and the random state is put back.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.policy_interface import Batch

from ..data.batches import LoaderBatch
from ..recipe import VLARecipe
from ..run import Run, TrainState
from .loss_gradients import cosine_table, figures_of, loss_gradients, named_losses
from .model_inputs import ModelInputs
from .shared_weights import Weights, shared_weights
from .targets import Targets


def agreement_if_due(
    run: Run, model_inputs: ModelInputs, raw: LoaderBatch, alignment_weight: float
) -> dict[str, Tensor]:
    """Not while alignment counts nothing: the teacher rests then."""
    every = run.recipe.analysis.gradient_agreement_every
    due = every > 0 and (run.progress.step + 1) % every == 0 and alignment_weight > 0
    return gradient_agreement(run, model_inputs, raw) if due else {}


def gradient_agreement(run: TrainState, model_inputs: ModelInputs, raw: LoaderBatch) -> dict[str, Tensor]:
    """For the journal, by "agreement/NAME"; see `figures_of`. Of the gradients averaged over all ranks, so that two
    ranks say what one with the batches of both would."""
    weights = shared_weights(run.policy, run.recipe.analysis.parameters)
    with run.times("agreement"), random_state_kept(run.accelerator.device), run_eagerly(run.recipe):
        batch, pictures, warp = model_inputs.inputs(raw)
        targets = model_inputs.targets(raw, pictures, warp)
        assert targets is not None  # the recipe's checks ask for alignment
        with run.accelerator.autocast():
            _, table = loss_cosines(run.policy, batch, targets, weights, mean_over_ranks(run))
    return {f"agreement/{name}": value for name, value in figures_of(table).items()}


def loss_cosines(
    policy: RocketForActionPrediction,
    batch: Batch,
    targets: Targets,
    weights: Weights,
    average: Callable[[Tensor], Tensor] = lambda gradients: gradients,
) -> tuple[list[str], Tensor]:
    """The names of the losses, and the cosines between their gradients (L, L)."""
    losses = named_losses(policy(**batch, targets=targets).losses)
    gradients = loss_gradients(list(losses.values()), list(weights.values()))
    return list(losses), cosine_table(average(gradients))


def mean_over_ranks(run: TrainState) -> Callable[[Tensor], Tensor]:
    return lambda gradients: run.accelerator.reduce(gradients, "mean")


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices, device_type="cuda"):
        yield


def run_eagerly(recipe: VLARecipe) -> AbstractContextManager:
    """Compiled layers give up what their backward pass reads, and here several read it."""
    return torch.compiler.set_stance("force_eager") if recipe.run.compile else nullcontext()
