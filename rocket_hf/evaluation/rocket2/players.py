"""What acts in episodes after a goal: a ROCKET-2 policy, or chance."""

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
from rocket_hf.sims.vizdoom.actions import FACTORS, REST
from rocket_hf.sims.vizdoom.world import SIZE

from .environment import GoalView, Moment, Start

SHOWN = ("visibility", "point")  # what is asked of the heads that a policy has kept


@dataclass(frozen=True)
class View:
    """A moment of an episode. Steps 0 is its beginning: what a player remembers of the place's last one is void."""

    start: Start
    moment: Moment


@dataclass(frozen=True)
class PlayerOutput:
    """What a player does, and where it thinks that its goal is."""

    choices: tuple[int, ...]
    visibility: float | None = None  # how probable it is that the goal is in view
    point: tuple[float, float] | None = None  # (y, x), as shares of the picture


class Player(Protocol):
    def act(self, views: Mapping[int, View]) -> dict[int, PlayerOutput]:
        """By place, of which there are as many as worlds run at a time: in each of them episode follows episode."""


@dataclass
class Chance:
    """Any choices, each as likely as another, the same in the same episode."""

    draws: dict[int, random.Random] = field(default_factory=dict)

    def act(self, views: Mapping[int, View]) -> dict[int, PlayerOutput]:
        for place, view in views.items():
            if not view.moment.steps:
                self.draws[place] = random.Random(f"choices in {view.start.seed}")
        return {place: PlayerOutput(tuple(self.draws[place].randrange(n) for n in FACTORS.values())) for place in views}


class PolicyPlayer:
    """One batch for all places; those where nothing goes on any more get the last picture again."""

    def __init__(self, policy: Rocket2ForActionPrediction, places: int, temperature: float = 1.0):
        kept = [name for name in SHOWN if name in policy.config.auxiliary_heads]
        self.policy, self.temperature = policy.for_inference(keep=kept), temperature
        self.state = self.policy.initial_state(places)
        self.images = torch.zeros(places, 3, *policy.config.image_size, dtype=torch.uint8)
        self.generators = [Generator() for _ in range(places)]

    def act(self, views: Mapping[int, View]) -> dict[int, PlayerOutput]:
        begins = {place: view for place, view in views.items() if not view.moment.steps}
        if begins:
            self.state = self.policy.reset(self.state, self.among(begins))
        for place, view in begins.items():
            self.generators[place].manual_seed(seed_of(view.start))
        for place, view in views.items():
            self.images[place] = channels_first(view.moment.image)
        images = self.images.to(self.policy.device)
        choices, self.state = self.policy.step(
            images, self.goal(views), self.state, temperature=self.temperature, generator=self.generators
        )
        seen = {name: value.tolist() for name, value in self.state.seen.items()}
        rows = choices.tolist()
        return {place: said(rows[place], {name: value[place] for name, value in seen.items()}) for place in views}

    def goal(self, views: Mapping[int, View]) -> Goal | None:
        """Those that are shown anew."""
        new = {place: view.moment.goal for place, view in sorted(views.items()) if view.moment.goal is not None}
        return goal_of(new, self.among(new)) if new else None

    def among(self, places: Mapping[int, object]) -> Tensor:
        """(B,) bool"""
        chosen = torch.zeros(len(self.images), dtype=torch.bool)
        chosen[list(places)] = True
        return chosen.to(self.policy.device)


def goal_of(views: Mapping[int, GoalView], environments: Tensor) -> Goal:
    device = environments.device
    images = torch.stack([channels_first(view.image) for view in views.values()])
    masks = torch.stack([torch.from_numpy(view.mask) for view in views.values()])
    approach = torch.full((len(views),), INTERACTIONS["approach"], device=device)
    return Goal(images.to(device), masks.to(device), approach, environments)


def channels_first(image: np.ndarray) -> Tensor:
    """(H, W, 3) to (3, H, W)."""
    return torch.from_numpy(image).permute(2, 0, 1)


def said(choices: list[int], seen: dict[str, Any]) -> PlayerOutput:
    point = seen.get("point")
    return PlayerOutput(tuple(choices), seen.get("visibility"), tuple(point) if point is not None else None)


def seed_of(start: Start) -> int:
    text = f"choices in {start.seed}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def require_fit(config: Rocket2Config) -> None:
    """A policy of other pictures or actions than the world's is refused, the two side by side."""
    pictures, actions = tuple(config.image_size), list(config.factors.items())
    rest = tuple(config.rest_action or ())
    if (pictures, actions, rest) != (SIZE, list(FACTORS.items()), REST):
        raise UserError(
            f"the policy has {spoken(pictures, dict(actions), rest)}; the world of vizdoom has "
            f"{spoken(SIZE, FACTORS, REST)}: train one on rooms of `rocket-hf simulate vizdoom`"
        )
    if config.interactions <= INTERACTIONS["approach"]:
        raise UserError(f"the policy knows {config.interactions} interactions, too few to be told to approach")


def spoken(pictures: tuple[int, ...], actions: dict[str, int], rest: tuple[int, ...]) -> str:
    named = ", ".join(f"{name} ({choices})" for name, choices in actions.items())
    return f"pictures of {' x '.join(map(str, pictures))} and the actions {named} with {list(rest)} for rest"
