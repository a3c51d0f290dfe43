"""Players of ROCKET-2 episodes: a ROCKET-2 policy, and random actions as a baseline."""

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket2 import INTERACTIONS, Rocket2Config
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.rocket2_interface import Goal
from rocket_hf.sims.vizdoom.actions import FACTORS, IDLE
from rocket_hf.sims.vizdoom.world import IMAGE_SIZE

from .simulator import GoalView, Rocket2Reply, Rocket2Start

EVALUATED_HEADS = ("visibility", "point")  # auxiliary heads whose predictions are evaluated if the policy has them


@dataclass(frozen=True)
class PlayerInput:
    """One step of an episode. At step 0 the player must forget the previous episode of this slot."""

    start: Rocket2Start
    reply: Rocket2Reply


@dataclass(frozen=True)
class PlayerOutput:
    """Action choices of a player, and its predictions about the goal in its current view."""

    choices: tuple[int, ...]
    visibility: float | None = None  # probability that the goal is in view
    point: tuple[float, float] | None = None  # (y, x), as fractions of the image


class Player(Protocol):
    def act(self, inputs: Mapping[int, PlayerInput]) -> dict[int, PlayerOutput]:
        """Return the output of each running episode by its slot. Each slot runs one episode after another."""


@dataclass
class RandomPlayer:
    """Uniformly random choices, seeded by the start of the episode."""

    generators: dict[int, random.Random] = field(default_factory=dict)

    def act(self, inputs: Mapping[int, PlayerInput]) -> dict[int, PlayerOutput]:
        for slot, each in inputs.items():
            if not each.reply.steps:
                self.generators[slot] = random.Random(f"choices in {each.start.seed}")
        return {slot: PlayerOutput(self.draw(self.generators[slot])) for slot in inputs}

    def draw(self, generator: random.Random) -> tuple[int, ...]:
        return tuple(generator.randrange(choices) for choices in FACTORS.values())


class PolicyPlayer:
    """A ROCKET-2 policy that runs all slots in one batch. Slots without a running episode repeat their last image."""

    def __init__(self, policy: Rocket2ForActionPrediction, slots: int, temperature: float = 1.0):
        kept = [name for name in EVALUATED_HEADS if name in policy.config.auxiliary_heads]
        self.policy, self.temperature = policy.for_inference(keep=kept), temperature
        self.state = self.policy.initial_state(slots)
        self.images = torch.zeros(slots, 3, *policy.config.image_size, dtype=torch.uint8)
        self.generators = [Generator() for _ in range(slots)]

    def act(self, inputs: Mapping[int, PlayerInput]) -> dict[int, PlayerOutput]:
        started = {slot: each for slot, each in inputs.items() if not each.reply.steps}
        if started:
            self.state = self.policy.reset(self.state, self.slot_mask(started))
        for slot, each in started.items():
            self.generators[slot].manual_seed(seed_of(each.start))
        for slot, each in inputs.items():
            self.images[slot] = channels_first(each.reply.image)
        images = self.images.to(self.policy.device)
        choices, self.state = self.policy.step(
            images, self.goal(inputs), self.state, temperature=self.temperature, generator=self.generators
        )
        predictions = {name: value.tolist() for name, value in self.state.seen.items()}
        rows = choices.tolist()
        return {
            slot: player_output(rows[slot], {name: values[slot] for name, values in predictions.items()})
            for slot in inputs
        }

    def goal(self, inputs: Mapping[int, PlayerInput]) -> Goal | None:
        """Return the goals that are shown at this step."""
        new = {slot: each.reply.goal for slot, each in sorted(inputs.items()) if each.reply.goal is not None}
        return batch_goals(new, self.slot_mask(new)) if new else None

    def slot_mask(self, slots: Mapping[int, object]) -> Tensor:
        """Return (B,) bool that is True for these slots."""
        mask = torch.zeros(len(self.images), dtype=torch.bool)
        mask[list(slots)] = True
        return mask.to(self.policy.device)


def batch_goals(views: Mapping[int, GoalView], environments: Tensor) -> Goal:
    device = environments.device
    images = torch.stack([channels_first(view.image) for view in views.values()])
    masks = torch.stack([torch.from_numpy(view.mask) for view in views.values()])
    approach = torch.full((len(views),), INTERACTIONS["approach"], device=device)
    return Goal(images.to(device), masks.to(device), approach, environments)


def channels_first(image: np.ndarray) -> Tensor:
    """Convert (H, W, 3) to (3, H, W)."""
    return torch.from_numpy(image).permute(2, 0, 1)


def player_output(choices: list[int], predictions: dict[str, Any]) -> PlayerOutput:
    point = predictions.get("point")
    return PlayerOutput(tuple(choices), predictions.get("visibility"), tuple(point) if point is not None else None)


def seed_of(start: Rocket2Start) -> int:
    text = f"choices in {start.seed}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def require_fit(config: Rocket2Config) -> None:
    """Raise a UserError if the policy's image size or actions are not those of the ViZDoom rooms."""
    image_size, actions = tuple(config.image_size), list(config.factors.items())
    rest = tuple(config.rest_action or ())
    if (image_size, actions, rest) != (IMAGE_SIZE, list(FACTORS.items()), IDLE):
        raise UserError(
            f"the policy has {describe_interface(image_size, dict(actions), rest)}; vizdoom has "
            f"{describe_interface(IMAGE_SIZE, FACTORS, IDLE)}: train a policy on a dataset of "
            "`rocket-hf simulate vizdoom`"
        )
    if config.interactions <= INTERACTIONS["approach"]:
        raise UserError(
            f"the policy has {config.interactions} interactions, but 'approach' is number {INTERACTIONS['approach']}: "
            "train a policy on a dataset of `rocket-hf simulate vizdoom`"
        )


def describe_interface(image_size: tuple[int, ...], actions: dict[str, int], rest: tuple[int, ...]) -> str:
    factors = ", ".join(f"{name} ({choices})" for name, choices in actions.items())
    return f"images of {' x '.join(map(str, image_size))} and the actions {factors} with {list(rest)} for rest"
