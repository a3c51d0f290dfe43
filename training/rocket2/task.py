"""ROCKET-2 as a training task: its data, losses, validation in held-out rooms and export."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers.utils import ModelOutput

from rocket_hf.errors import UserError
from rocket_hf.export.policy_folder import write_rocket2_files
from rocket_hf.folder_lock import staged_folder
from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.modeling_rocket2 import AUXILIARY_PREFIX, Rocket2ForActionPrediction

from ..data.mixture import split_episodes
from ..distributed.agreement import main_process_first
from ..input_fingerprints import Fingerprints, dataset_fingerprints, policy_fingerprints
from ..journal import StepTimer
from ..recipe import Rocket2Recipe
from ..recipe_checks import split_batch
from ..task import Losses, TrainingTask
from .batches import Rocket2Batches, Rocket2Chunk, rocket2_batch
from .dataset import RecordedRooms
from .policy import (
    check_no_sharding,
    check_policy_fits_data,
    find_rocket2_folder,
    load_rocket2_policy,
    rocket2_policy_config,
)
from .samples import Rocket2Samples
from .validation import Rocket2Validation
from .visibility_index import VisibilityIndex

HEADS = ("action_heads.", AUXILIARY_PREFIX)


def create_rocket2_task(recipe: Rocket2Recipe, accelerator: Accelerator) -> "Rocket2TrainingTask":
    settings, seed = recipe.rocket2, recipe.run.seed
    check_no_sharding()
    rank, world_size = accelerator.process_index, accelerator.num_processes
    samples_per_pass, passes = split_batch(recipe, world_size)
    with main_process_first(accelerator):  # so that datasets and policy are downloaded once
        config, data = open_policy_config_and_data(recipe)
    data.load_images()
    visibility = VisibilityIndex(data)
    training_rooms, held_out_rooms = split_episodes(data.rooms, recipe.data.validation, seed)
    training = Rocket2Samples(data, visibility, training_rooms, settings, config, seed)
    demonstrations_only = replace(settings, views_share=0.0)  # validation chooses the kind of each sample itself
    held_out = Rocket2Samples(data, visibility, held_out_rooms, demonstrations_only, config, seed)
    check_samples(training, recipe)
    return Rocket2TrainingTask(
        recipe,
        load_rocket2_policy(recipe, config),
        Rocket2Batches(training, recipe.run.batch_size, samples_per_pass, passes, rank, world_size),
        Rocket2Validation(held_out, recipe.run.validation_samples, samples_per_pass, rank, world_size),
        accelerator,
        missing_goal_notes(training),
    )


class Rocket2TrainingTask(TrainingTask):
    """Training of a ROCKET-2 policy.

    In the first `warmup_steps` optimizer steps, only auxiliary heads are trained, on view samples without actions.
    """

    def __init__(
        self,
        recipe: Rocket2Recipe,
        policy: Rocket2ForActionPrediction,
        training: Rocket2Batches,
        validation: Rocket2Validation,
        accelerator: Accelerator,
        notes: list[str],
    ):
        self.recipe, self.settings, self.policy = recipe, recipe.rocket2, policy
        self.training, self.validation, self.accelerator, self.notes = training, validation, accelerator, notes
        self.has_validation_data = validation.has_data

    @staticmethod
    def part_of(name: str) -> str:
        return "heads" if name.startswith(HEADS) else "policy"

    def make_trainable(self) -> None:
        """Prepare the policy for training. All weights train, except an encoder that its configuration freezes."""
        if self.recipe.run.gradient_checkpointing:
            self.policy.gradient_checkpointing_enable({"use_reentrant": False})

    def input_fingerprints(self) -> Fingerprints:
        fingerprints = dataset_fingerprints(self.recipe)
        if not self.recipe.policy:
            return fingerprints
        return fingerprints | policy_fingerprints(self.recipe.policy, find_rocket2_folder(self.recipe.policy))

    def batches(self, first_step: int) -> Iterator[list[Rocket2Chunk]]:
        return (self.training.chunks_of_step(step) for step in count(first_step))

    def extra_metrics(self, batches: list[Rocket2Chunk], step: int, timer: StepTimer) -> dict[str, Any]:
        return {"chunks": len(batches)}

    def model_inputs(
        self, batch: Rocket2Chunk, step: int, previous: ModelOutput | None, timer: StepTimer
    ) -> dict[str, Any]:
        """Return the model's arguments for a chunk, with the memory of the previous chunk if it continues that one."""
        memory = previous.memory if previous is not None and batch["is_continuation"] else None
        with timer("data"):
            inputs = rocket2_batch(batch, self.accelerator.device, self.policy.config.auxiliary_heads)
        return {"memory": memory, **inputs}

    def loss_weights(self, names: Iterable[str], step: int) -> dict[str, float]:
        """Return the loss weights: one for all factors of the action, and one for each auxiliary head."""
        weights = {}
        for name in names:
            kind, _, head = name.partition("/")
            weights[name] = self.settings.action if kind == "action" else getattr(self.settings, head)
        return weights

    def losses_to_log(self, losses: Losses, step: int) -> Losses:
        """Return the losses without those of actions during the warm-up.

        These are zero, because no action is imitated. They are computed nevertheless, so that each weight has a
        gradient.
        """
        if self.trains_actions(step):
            return losses
        return {name: loss for name, loss in losses.items() if not name.startswith("action/")}

    def trains_actions(self, step: int) -> bool:
        return step >= self.settings.warmup_steps

    def validate(self, steps: int) -> dict[str, float]:
        """Return the metrics in held-out rooms, without an error if no step has trained actions yet."""
        metrics = self.validation(self.policy, self.accelerator)
        if not self.trains_actions(steps - 1):
            metrics.pop("error", None)
        return metrics

    def policy_for_export(self) -> Rocket2ForActionPrediction:
        return self.policy.for_inference(self.settings.keep)

    def save_policy(self, policy: Rocket2ForActionPrediction, folder: Path) -> None:
        with staged_folder(folder) as staging:
            policy.save_pretrained(staging)
            write_rocket2_files(staging, policy.config)

    def describe_error(self, error: float) -> str:
        return f"cross-entropy of {error:.4g} nats for demonstrated actions in held-out rooms"


def open_policy_config_and_data(recipe: Rocket2Recipe) -> tuple[Rocket2Config, RecordedRooms]:
    """Return the policy's configuration and the datasets, checked against each other; images are not loaded yet."""
    config = rocket2_policy_config(recipe)
    data = RecordedRooms([dataset.id for dataset in recipe.data.datasets])
    check_policy_fits_data(config, data)
    return config, data


def check_samples(samples: Rocket2Samples, recipe: Rocket2Recipe) -> None:
    settings = samples.settings
    if not samples.views and (settings.warmup_steps or settings.views_share):
        raise UserError(
            "no training room has views with objects in them: record views with `rocket-hf simulate vizdoom --views`, "
            "or set rocket2.warmup_steps=0 and rocket2.views_share=0"
        )
    if not samples.demonstrations and settings.warmup_steps < recipe.run.steps:
        raise UserError(
            "no training room has a demonstration whose target is visible in another view: record more views with "
            "`rocket-hf simulate vizdoom --views`, or set rocket2.same_episode_goals=1"
        )


def missing_goal_notes(samples: Rocket2Samples) -> list[str]:
    if not samples.demonstrations_without_goal:
        return []
    return [
        f"{samples.demonstrations_without_goal} demonstrations are not used: no other view of their room shows their "
        "target"
    ]
