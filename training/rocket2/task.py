"""ROCKET-2 as what a run trains: its data and losses, its validation on rooms held out, the policy that comes of it."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from rocket_hf.errors import UserError
from rocket_hf.export.export_files import staged, write_rocket2_surroundings
from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.modeling_rocket2 import AUXILIARY, Rocket2ForActionPrediction
from rocket_hf.modeling.rocket2_interface import Memory

from ..data.mixture import split_episodes
from ..recipe import GoalRecipe, Recipe
from ..recipe_checks import passes
from ..run import Losses, Run, TrainingTask, TrainState
from .batches import Rocket2Batches, Rocket2Chunk, rocket2_batch
from .dataset import RecordedRooms
from .policy import check_fits, check_placement, open_policy, policy_config
from .samples import Rocket2Samples
from .validation import Rocket2Validation
from .visibility_index import VisibilityIndex

HEADS = ("action_heads.", AUXILIARY)


def create_rocket2_task(recipe: Recipe, accelerator: Accelerator) -> "Rocket2TrainingTask":
    goals = recipe.goals
    assert goals is not None
    check_placement()
    rank, ranks = accelerator.process_index, accelerator.num_processes
    each, passes_of_step = passes(recipe, ranks)
    with accelerator.main_process_first():  # so that what has to be fetched is fetched once
        config, data = open_data(recipe)
    data.read()
    sights = VisibilityIndex(data)
    rooms, others = split_episodes(data.rooms, recipe.data.validation, recipe.run.seed)
    training = Rocket2Samples(data, sights, rooms, goals, config, recipe.run.seed)
    held_out = Rocket2Samples(data, sights, others, replace(goals, views_share=0.0), config, recipe.run.seed)
    check_samples(training, recipe)
    return Rocket2TrainingTask(
        recipe,
        open_policy(recipe, config),
        Rocket2Batches(training, recipe.run.batch_size, each, passes_of_step, rank, ranks),
        Rocket2Validation(held_out, recipe.run.validation_samples, each, rank, ranks),
        notes_of(training),
    )


class Rocket2TrainingTask(TrainingTask):
    def __init__(
        self,
        recipe: Recipe,
        policy: Rocket2ForActionPrediction,
        training: Rocket2Batches,
        validation: Rocket2Validation,
        notes: list[str],
    ):
        assert recipe.goals is not None
        self.recipe, self.goals, self.policy = recipe, recipe.goals, policy
        self.training, self.validation, self.notes = training, validation, notes
        self.validates = bool(validation.samples.walks or validation.samples.views)

    @staticmethod
    def part_of(name: str) -> str:
        return "heads" if name.startswith(HEADS) else "policy"

    def make_trainable(self) -> None:
        """Everything trains but a frozen encoder, which the policy's own configuration says."""
        if self.recipe.run.gradient_checkpointing:
            self.policy.gradient_checkpointing_enable({"use_reentrant": False})

    def batches(self, first_step: int) -> Iterator[list[Rocket2Chunk]]:
        return (self.training.of_step(step) for step in count(first_step))

    def measured(self, run: Run, batches: list[Rocket2Chunk]) -> dict[str, Any]:
        return {"chunks": len(batches)}

    def losses(
        self, run: TrainState, raw: Rocket2Chunk, step: int, carried: Memory | None
    ) -> tuple[Losses, Tensor, Memory]:
        """Of a chunk, which goes on from the memory of the one before it if it is of the same episodes. While nothing
        is cloned the losses of actions are no figures: they are zero, and there so that each weight has a gradient."""
        with run.times("data"):
            batch = rocket2_batch(raw, run.accelerator.device, self.policy.config.auxiliary_heads)
        with run.times("student"), run.accelerator.autocast():
            output = run.model(memory=carried if raw["goes_on"] else None, **batch)
        named = {
            name: loss for name, loss in output.losses.items() if self.cloning(step) or not name.startswith("action/")
        }
        return named, weighted_sum(output.losses, self.goals), output.memory

    def cloning(self, step: int) -> bool:
        return step >= self.goals.warmup_steps

    def validate(self, run: Run) -> dict[str, float]:
        """Without an error while nothing is cloned."""
        found = self.validation(self.policy, run.accelerator)
        if not self.cloning(run.progress.step - 1):
            found.pop("error", None)
        return found

    def finished(self) -> Rocket2ForActionPrediction:
        return self.policy.for_inference(self.goals.keep)

    def write(self, policy: Rocket2ForActionPrediction, folder: Path) -> None:
        with staged(folder) as staging:
            policy.save_pretrained(staging)
            write_rocket2_surroundings(staging, policy.config)

    def tell_error(self, error: float) -> str:
        return f"{error:.4g} nats of surprise at demonstrated actions, in held-out rooms"


def weighted_sum(losses: Losses, goals: GoalRecipe) -> Tensor:
    """The factors of the action weigh the same, each head has a weight of its own name."""
    parts = [name.partition("/")[::2] for name in losses]
    weights = [goals.action if kind == "action" else getattr(goals, name) for kind, name in parts]
    return torch.stack([weight * loss for weight, loss in zip(weights, losses.values(), strict=True)]).sum()


def open_data(recipe: Recipe) -> tuple[Rocket2Config, RecordedRooms]:
    """What the policy is, and the data that it fits, as yet without their pictures."""
    config = policy_config(recipe)
    data = RecordedRooms([dataset.id for dataset in recipe.data.datasets])
    check_fits(config, data)
    return config, data


def check_samples(samples: Rocket2Samples, recipe: Recipe) -> None:
    goals = samples.goals
    if not samples.views and (goals.warmup_steps or goals.views_share):
        raise UserError("no room of the datasets has views with objects in them: record some with --views, or set "
                         "goals.warmup_steps=0 and goals.views_share=0")  # fmt: skip
    if not samples.walks and goals.warmup_steps < recipe.run.steps:
        raise UserError("no room of the datasets has an episode whose target can be shown in another view: record "
                         "more views, or set goals.own_goals=1")  # fmt: skip


def notes_of(samples: Rocket2Samples) -> list[str]:
    """What the data lack."""
    if not samples.without_goal:
        return []
    return [f"{samples.without_goal} episodes are left out: no other view of their room shows their target"]
