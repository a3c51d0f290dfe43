"""The vision-language-action policies, aligned with a 3D vision model or not: their losses, validation and export."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from rocket_hf.export.export_files import export_policy
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.policy_interface import weighted_loss
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.teachers.load import DTYPES

from ..data.batches import LoaderBatch
from ..data.loader import BatchLoader, make_loader
from ..optimization import alignment_weight
from ..recipe import AugmentationConfig, VLARecipe
from ..recipe_checks import split_batch
from ..run import Losses, Run, TrainingTask, TrainState
from .gradient_agreement import agreement_if_due
from .gradient_projection import check_conflicts
from .model_inputs import ModelInputs
from .parts import part_of
from .quantize import quantize_frozen
from .resources import TrainingResources, load_policy, load_training_resources
from .shared_weights import check_agreement
from .trainable import make_trainable, merge_lora_weights, policy_of

OBSERVED = ("images", "camera_mask", "input_ids", "attention_mask", "state", "noise")


def create_vla_task(recipe: VLARecipe, accelerator: Accelerator) -> "VLATrainingTask":
    sources = load_resources_once(recipe, accelerator)
    split_batch(recipe, accelerator.num_processes)  # or the sentence that it cannot be shared so
    policy = load_policy(sources.folder, sources.config.alignment, recipe)
    model_inputs = ModelInputs(policy.config, sources.processor, sources.targets, accelerator.device)
    return VLATrainingTask(recipe, policy, sources.processor, model_inputs, accelerator, sources)


class VLATrainingTask(TrainingTask):
    def __init__(
        self,
        recipe: VLARecipe,
        policy: RocketForActionPrediction,
        processor: RocketProcessor,
        model_inputs: ModelInputs,
        accelerator: Accelerator,
        sources: TrainingResources | None,
    ):
        """Without `sources` it can take steps with batches that somebody else has made."""
        self.recipe, self.policy, self.processor, self.model_inputs = recipe, policy, processor, model_inputs
        self.accelerator, self.sources = accelerator, sources
        self.notes = sources.notes if sources is not None else []
        self.validation = validation_loader(sources, recipe, accelerator) if sources is not None else None
        self.validates = self.validation is not None

    @staticmethod
    def part_of(name: str) -> str:
        return part_of(name)

    def make_trainable(self) -> None:
        policy, recipe = self.policy, self.recipe
        make_trainable(policy, recipe)
        if recipe.run.quantize:
            quantize_frozen(policy, DTYPES[recipe.run.base_dtype])
        check_agreement(recipe, policy)
        check_conflicts(recipe)
        arrange(policy, recipe)

    def batches(self, first_step: int) -> Iterator[list[LoaderBatch]]:
        assert self.sources is not None
        each, count = split_batch(self.recipe, self.accelerator.num_processes)
        batches = iter(training_loader(self.sources, self.recipe, self.accelerator, each, first_step))
        while step := list(islice(batches, count)):
            yield step

    def measured(self, run: Run, batches: list[LoaderBatch]) -> dict[str, Any]:
        weight = alignment_weight(self.recipe.alignment, run.progress.step)
        agreement = agreement_if_due(run, self.model_inputs, batches[0], weight)
        return {**agreement, "alignment_weight": weight}

    def losses(self, run: TrainState, raw: LoaderBatch, step: int, carried: None) -> tuple[Losses, Tensor, None]:
        weight = alignment_weight(self.recipe.alignment, step)
        with run.times("data"):
            batch, pictures, warp = self.model_inputs.inputs(raw)
        with run.times("teacher"):
            targets = (
                self.model_inputs.targets(raw, pictures, warp) if weight else self.model_inputs.zero_targets(batch)
            )
        with run.times("student"), run.accelerator.autocast():
            losses = run.model(**batch, targets=targets).losses
        return losses, weighted_loss(losses, weight), None

    def validate(self, run: Run) -> dict[str, float]:
        """The mean distance of predicted actions to the demonstrated ones, and that of each dimension."""
        assert self.validation is not None
        sums = torch.zeros(2, self.policy.config.action_dim, device=self.accelerator.device)  # distances, counts
        for raw in self.validation:
            sums += self.distances(raw)
        distance, count = self.accelerator.reduce(sums, "sum")
        error = distance / count
        names = self.policy.config.action_names or [str(number) for number in range(len(error))]
        rows = {name: round(value, 8) for name, value in zip(names, error.tolist(), strict=True)}
        return {"error": error.mean().item(), **rows}

    def distances(self, raw: LoaderBatch) -> Tensor:
        """For each dimension, the sum of the absolute distances over the steps that exist, and their number: (2, A)."""
        batch, _, _ = self.model_inputs.inputs(raw)
        with self.accelerator.autocast():
            predicted = self.policy.predict_action_chunk(**{key: batch[key] for key in OBSERVED if key in batch})  # type: ignore
        unnormalize = self.processor.unnormalize_actions
        distance = (unnormalize(predicted.float()) - unnormalize(batch["actions"])).abs()  # (B, chunk, A)
        exists = (~batch["action_is_pad"])[..., None].expand_as(distance)
        return torch.stack([(distance * exists).sum((0, 1)), exists.float().sum((0, 1))])

    def finished(self) -> RocketForActionPrediction:
        """Without its alignment head, LoRA merged."""
        return policy_of(self.policy.config, merge_lora_weights(self.policy))

    def write(self, policy: RocketForActionPrediction, folder: Path) -> None:
        export_policy(policy, self.processor, folder)

    def tell_error(self, error: float) -> str:
        return f"{error:.4g} robot units from the demonstrated actions"


def load_resources_once(recipe: VLARecipe, accelerator: Accelerator) -> TrainingResources:
    """The main process first, so that what has to be fetched or indexed is done once."""
    device = accelerator.device if accelerator.device.type != "cpu" else torch.device("cpu")  # without a number
    with accelerator.main_process_first():
        return load_training_resources(recipe, device)


def arrange(policy: RocketForActionPrediction, recipe: VLARecipe) -> None:
    if recipe.run.gradient_checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    if recipe.run.compile:
        for layer in policy.policy.get_submodule("layers").children():
            layer.compile()


def training_loader(
    sources: TrainingResources, recipe: VLARecipe, accelerator: Accelerator, each: int, step: int
) -> BatchLoader:
    size = recipe.run.batch_size
    return make_loader(
        sources.datasets,
        sources.order,
        sources.processor,
        sources.config,
        recipe.data,
        recipe.run.seed,
        each,
        accelerator.process_index,
        accelerator.num_processes,
        step * size,
        recipe.run.steps * size,
        sources.caches,
    )


def validation_loader(sources: TrainingResources, recipe: VLARecipe, accelerator: Accelerator) -> BatchLoader | None:
    """Held-out frames as they are, as many on each rank; in this process, since it runs now and then."""
    ranks = accelerator.num_processes
    if sources.held_out is None or len(sources.held_out) < ranks:
        return None
    each, _ = split_batch(recipe, ranks)
    each = min(each, len(sources.held_out) // ranks)
    total = len(sources.held_out) // (each * ranks) * each * ranks
    plain = replace(recipe.data, augmentation=AugmentationConfig(), workers=0)
    return make_loader(
        sources.datasets,
        sources.held_out,
        sources.processor,
        sources.config,
        plain,
        recipe.run.seed,
        each,
        accelerator.process_index,
        ranks,
        0,
        total,
    )
