"""The training task of vision-language-action policies, with or without alignment to a 3D vision model."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.utils import ModelOutput

from rocket_hf.export.policy_folder import export_policy
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.teachers.load import DTYPES

from ..data.batches import LoaderBatch
from ..data.loader import BatchLoader, make_loader
from ..distributed.agreement import main_process_first
from ..input_fingerprints import Fingerprints
from ..journal import StepTimer
from ..optimization import alignment_weight
from ..recipe import AugmentationConfig, VLARecipe
from ..recipe_checks import split_batch
from ..task import TrainingTask
from .gradient_agreement import GradientAgreement
from .gradient_projection import check_gradient_projection
from .loss_gradients import ALIGNMENT_PREFIX
from .model_inputs import ModelInputs
from .parts import part_of
from .quantize import quantize_frozen
from .resources import TrainingResources, load_policy, load_training_resources, resource_fingerprints
from .shared_weights import check_gradient_agreement
from .trainable import make_trainable, merge_lora_weights, policy_from_weights

PREDICTION_INPUTS = ("images", "camera_mask", "input_ids", "attention_mask", "state", "noise")


def create_vla_task(recipe: VLARecipe, accelerator: Accelerator) -> "VLATrainingTask":
    resources = load_resources_once(recipe, accelerator)
    split_batch(recipe, accelerator.num_processes)  # raises a UserError before the weights are loaded
    policy = load_policy(resources.folder, resources.config.alignment, recipe)
    model_inputs = ModelInputs(policy.config, resources.processor, resources.targets, accelerator.device)
    return VLATrainingTask(recipe, policy, resources.processor, model_inputs, accelerator, resources)


class VLATrainingTask(TrainingTask):
    def __init__(
        self,
        recipe: VLARecipe,
        policy: RocketForActionPrediction,
        processor: RocketProcessor,
        batch_inputs: ModelInputs,
        accelerator: Accelerator,
        resources: TrainingResources | None,
    ):
        """Without `resources`, the task can only take steps with given batches."""
        self.recipe, self.policy, self.processor, self.batch_inputs = recipe, policy, processor, batch_inputs
        self.accelerator, self.resources = accelerator, resources
        self.agreement = GradientAgreement(policy, recipe, accelerator, batch_inputs)
        self.notes = resources.notes if resources is not None else []
        self.validation = validation_loader(resources, recipe, accelerator) if resources is not None else None
        self.has_validation_data = self.validation is not None

    @staticmethod
    def part_of(name: str) -> str:
        return part_of(name)

    def make_trainable(self) -> None:
        policy, recipe = self.policy, self.recipe
        make_trainable(policy, recipe)
        if recipe.run.quantize:
            quantize_frozen(policy, DTYPES[recipe.run.base_dtype])
        check_gradient_agreement(recipe, policy)
        check_gradient_projection(recipe)
        enable_checkpointing_and_compile(policy, recipe)

    def input_fingerprints(self) -> Fingerprints:
        assert self.resources is not None
        return resource_fingerprints(self.recipe, self.resources)

    def batches(self, first_step: int) -> Iterator[list[LoaderBatch]]:
        assert self.resources is not None
        per_pass, passes = split_batch(self.recipe, self.accelerator.num_processes)
        batches = iter(training_loader(self.resources, self.recipe, self.accelerator, per_pass, first_step))
        while step_batches := list(islice(batches, passes)):
            yield step_batches

    def model_inputs(
        self, batch: LoaderBatch, step: int, previous: ModelOutput | None, timer: StepTimer
    ) -> dict[str, Any]:
        """Return the model's batch and the alignment targets. While the alignment weight is 0, no teacher is run."""
        with timer("data"):
            inputs, images, warp = self.batch_inputs.inputs(batch)
        with timer("teacher"):
            if self.alignment_weight(step):
                targets = self.batch_inputs.targets(batch, images, warp)
            else:
                targets = self.batch_inputs.zero_targets(inputs)
        return {**inputs, "targets": targets}

    def alignment_weight(self, step: int) -> float:
        return alignment_weight(self.recipe.alignment, step)

    def loss_weights(self, names: Collection[str], step: int) -> dict[str, float]:
        """Return 1 for action losses and lambda / pairs for each of the alignment losses (ROCKET, eq. 4)."""
        aligned = [name for name in names if name.startswith(ALIGNMENT_PREFIX)]
        weights = dict.fromkeys(names, 1.0)
        return weights | {name: self.alignment_weight(step) / len(aligned) for name in aligned}

    def extra_metrics(self, batches: list[LoaderBatch], step: int, timer: StepTimer) -> dict[str, Any]:
        weight = self.alignment_weight(step)
        metrics: dict[str, Any] = {"alignment_weight": weight}
        if self.agreement.is_due(step, weight):
            with timer("agreement"):
                metrics |= self.agreement.measure(batches[0])
        return metrics

    def validate(self, steps: int) -> dict[str, float]:
        """Return the mean distance between predicted and demonstrated actions, and that of each action dimension."""
        assert self.validation is not None
        sums = torch.zeros(2, self.policy.config.action_dim, device=self.accelerator.device)  # distances, counts
        for batch in self.validation:
            sums += self.action_distances(batch)
        distance, count = self.accelerator.reduce(sums, "sum")
        was_measured = count > 0  # A dimension is not, if the held-out frames are of datasets that lack it.
        errors = (distance / count)[was_measured]
        names = self.policy.config.action_names or [str(number) for number in range(len(count))]
        measured_names = [name for name, measured in zip(names, was_measured.tolist(), strict=True) if measured]
        by_name = {name: round(value, 8) for name, value in zip(measured_names, errors.tolist(), strict=True)}
        return {"error": errors.mean().item(), **by_name}

    def action_distances(self, batch: LoaderBatch) -> Tensor:
        """Return, for each action dimension, the sum of the absolute distances over the valid steps, and the number of
        valid steps: (2, A)."""
        inputs, _, _ = self.batch_inputs.inputs(batch)
        with self.accelerator.autocast():
            predicted = self.policy.predict_action_chunk(
                **{key: inputs[key] for key in PREDICTION_INPUTS if key in inputs}  # type: ignore
            )
        unnormalize = self.processor.unnormalize_actions
        distance = (unnormalize(predicted.float()) - unnormalize(inputs["actions"])).abs()  # (B, chunk, A)
        is_valid = (~inputs["action_is_pad"])[..., None].expand_as(distance)
        if "action_mask" in inputs:
            is_valid = is_valid & inputs["action_mask"][:, None]
        return torch.stack([(distance * is_valid).sum((0, 1)), is_valid.float().sum((0, 1))])

    def policy_for_export(self) -> RocketForActionPrediction:
        """Return the policy without its alignment head and with LoRA merged."""
        return policy_from_weights(self.policy.config, merge_lora_weights(self.policy))

    def save_policy(self, policy: RocketForActionPrediction, folder: Path) -> None:
        export_policy(policy, self.processor, folder)

    def describe_error(self, error: float) -> str:
        return f"{error:.4g} robot units from the demonstrated actions"


def load_resources_once(recipe: VLARecipe, accelerator: Accelerator) -> TrainingResources:
    """Load the resources in the main process first, so that downloads and indexing happen once."""
    device = accelerator.device if accelerator.device.type != "cpu" else torch.device("cpu")  # without an index
    with main_process_first(accelerator):
        return load_training_resources(recipe, device)


def enable_checkpointing_and_compile(policy: RocketForActionPrediction, recipe: VLARecipe) -> None:
    if recipe.run.gradient_checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    if recipe.run.compile:
        for layer in policy.policy.get_submodule("layers").children():
            layer.compile()


def training_loader(
    resources: TrainingResources, recipe: VLARecipe, accelerator: Accelerator, batch_size: int, first_step: int
) -> BatchLoader:
    step_size = recipe.run.batch_size
    return make_loader(
        resources.datasets,
        resources.order,
        resources.processor,
        resources.config,
        recipe.data,
        recipe.run.seed,
        batch_size,
        accelerator.process_index,
        accelerator.num_processes,
        first_step * step_size,
        recipe.run.steps * step_size,
        resources.feature_readers,
    )


def validation_loader(resources: TrainingResources, recipe: VLARecipe, accelerator: Accelerator) -> BatchLoader | None:
    """Return a loader of the held-out frames, without augmentation, with equally many frames on each rank.

    It runs in this process, without workers, because it is used rarely. None if there are too few held-out frames.
    """
    ranks = accelerator.num_processes
    if resources.held_out is None or len(resources.held_out) < ranks:
        return None
    per_pass, _ = split_batch(recipe, ranks)
    per_pass = min(per_pass, len(resources.held_out) // ranks)
    total = len(resources.held_out) // (per_pass * ranks) * per_pass * ranks
    data_config = replace(recipe.data, augmentation=AugmentationConfig(), workers=0)
    return make_loader(
        resources.datasets,
        resources.held_out,
        resources.processor,
        resources.config,
        data_config,
        recipe.run.seed,
        per_pass,
        accelerator.process_index,
        ranks,
        0,
        total,
    )
