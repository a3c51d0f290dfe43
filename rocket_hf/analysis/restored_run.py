"""Restored training runs: the model with its alignment head, the training data and the teacher."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rocket_hf.errors import UserError
from rocket_hf.evaluation.trained_policy import find_trained_policy
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.policy_interface import Batch
from rocket_hf.teachers.load import DTYPES
from rocket_hf.training.checkpoint import load_trainable_weights, read_progress, read_tensors
from rocket_hf.training.data.loader import make_loader
from rocket_hf.training.recipe import VLARecipe
from rocket_hf.training.vla.model_inputs import ModelInputs
from rocket_hf.training.vla.quantize import quantize_frozen
from rocket_hf.training.vla.resources import TrainingResources, load_policy, load_training_resources
from rocket_hf.training.vla.targets import Targets
from rocket_hf.training.vla.trainable import make_trainable


@dataclass
class RestoredRun:
    """Model, data and teacher of a run at one of its checkpoints."""

    recipe: VLARecipe
    resources: TrainingResources
    policy: RocketForActionPrediction
    step: int
    device: torch.device

    def batches(self, samples: int, batch_size: int) -> Iterator[tuple[Batch, Targets]]:
        """Yield the first samples of the run with their original augmentation, and the alignment targets."""
        resources, recipe = self.resources, self.recipe
        model_inputs = ModelInputs(self.policy.config, resources.processor, resources.targets, self.device)
        loader = make_loader(
            resources.datasets, resources.order, resources.processor, self.policy.config,
            replace(recipe.data, workers=0), recipe.run.seed, batch_size, end_position=samples,
            feature_caches=resources.feature_readers,
        )  # fmt: skip
        for raw in loader:
            batch, images, warp = model_inputs.inputs(raw)
            targets = model_inputs.targets(raw, images, warp)
            assert targets is not None
            yield batch, targets

    def autocast(self) -> AbstractContextManager:
        """Return the autocast context of training: mixed precision if the frozen weights are in bfloat16."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.run.base_dtype == "bfloat16")


def restore_run(path: Path, device: torch.device) -> RestoredRun:
    """Restore a run with alignment. `path` is a run folder (its last checkpoint is used) or a checkpoint folder."""
    source = find_trained_policy(path)
    recipe, checkpoint = source.recipe, source.checkpoint
    if recipe is None or checkpoint is None:
        raise UserError(f"{path} has no checkpoint: pass the folder of a run or of one of its checkpoints")
    if not isinstance(recipe, VLARecipe) or recipe.alignment is None:
        raise UserError(f"the run in {source.run} was trained without alignment: pass a run whose recipe has alignment")
    resources = load_training_resources(recipe, device)
    policy = build_initial_policy(resources, recipe)
    load_trainable_weights(policy, read_tensors(checkpoint, "model"), checkpoint)
    return RestoredRun(recipe, resources, policy.to(device).eval(), read_progress(checkpoint).step, device)


def build_initial_policy(resources: TrainingResources, recipe: VLARecipe) -> RocketForActionPrediction:
    """Return the policy with its alignment head as it was before the first training step."""
    policy = load_policy(resources.folder, resources.config.alignment, recipe)
    make_trainable(policy, recipe)
    if recipe.run.quantize:
        quantize_frozen(policy, DTYPES[recipe.run.base_dtype])
    return policy
