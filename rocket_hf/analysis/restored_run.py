"""A run as it was while it trained: its model with its own alignment head, its data and its teacher."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rocket_hf.errors import UserError
from rocket_hf.evaluation.trained_policy import find_origin
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.policy_interface import Batch
from rocket_hf.teachers.load import DTYPES
from rocket_hf.training.checkpoint import put, read, read_progress
from rocket_hf.training.data.loader import make_loader
from rocket_hf.training.optimization import trained
from rocket_hf.training.recipe import VLARecipe
from rocket_hf.training.vla.model_inputs import ModelInputs
from rocket_hf.training.vla.quantize import quantize_frozen
from rocket_hf.training.vla.resources import TrainingResources, load_policy, load_training_resources
from rocket_hf.training.vla.targets import Targets
from rocket_hf.training.vla.trainable import make_trainable


@dataclass
class RestoredRun:
    recipe: VLARecipe
    sources: TrainingResources
    policy: RocketForActionPrediction
    step: int
    device: torch.device

    def batches(self, samples: int, batch_size: int) -> Iterator[tuple[Batch, Targets]]:
        """The first samples of the run, augmented as they were, with their targets."""
        sources, recipe = self.sources, self.recipe
        model_inputs = ModelInputs(self.policy.config, sources.processor, sources.targets, self.device)
        loader = make_loader(
            sources.datasets, sources.order, sources.processor, self.policy.config, replace(recipe.data, workers=0),
            recipe.run.seed, batch_size, end_position=samples, feature_caches=sources.caches,
        )  # fmt: skip
        for raw in loader:
            batch, pictures, warp = model_inputs.inputs(raw)
            targets = model_inputs.targets(raw, pictures, warp)
            assert targets is not None
            yield batch, targets

    def autocast(self) -> AbstractContextManager:
        """Frozen weights in bfloat16 were trained under mixed precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.run.base_dtype == "bfloat16")


def restore_run(path: Path, device: torch.device) -> RestoredRun:
    """A run at its last checkpoint, or at the one given, whose policy was aligned."""
    origin = find_origin(path)
    recipe, checkpoint = origin.recipe, origin.checkpoint
    if recipe is None or checkpoint is None:
        raise UserError(f"{path} has no checkpoint to look into: give the folder of a run, or one of its checkpoints")
    if recipe.alignment is None:
        raise UserError(f"the run in {origin.run} aligned nothing, so it has no layer pairs to look at")
    sources = load_training_resources(recipe, device)
    policy = starting_policy(sources, recipe)
    put(dict(trained(policy)), read(checkpoint, "model"), checkpoint)
    return RestoredRun(recipe, sources, policy.to(device).eval(), read_progress(checkpoint).step, device)


def starting_policy(sources: TrainingResources, recipe: VLARecipe) -> RocketForActionPrediction:
    """As it was before the first step, alignment head and all."""
    policy = load_policy(sources.folder, sources.config.alignment, recipe)
    make_trainable(policy, recipe)
    if recipe.run.quantize:
        quantize_frozen(policy, DTYPES[recipe.run.base_dtype])
    return policy
