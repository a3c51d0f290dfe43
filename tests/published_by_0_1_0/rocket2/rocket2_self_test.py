"""ROCKET-2's check of itself: a few steps of some environments, their goals changing on the way, and what it did.

What was done between the steps is told by the file, so that one other choice does not change all that follows.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .rocket2_contract import Goal
from .self_test import distance, kind_of_number, require_none

SCORES, SEEN = "scores", "seen."
OTHER = {"images": "other images", "goals": "other goals"}


@dataclass
class Shown:
    """What the environments show, and the goals, which last as long as each other, one after another."""

    images: Tensor  # (B, T, 3, H, W) uint8
    goal_images: Tensor  # (B, G, 3, H, W) uint8
    goal_masks: Tensor  # (B, G, H, W) bool
    goal_interactions: Tensor  # (B, G)

    def goal(self, step: int) -> Goal | None:
        """The one that is new at this step."""
        lasts = self.images.shape[1] // self.goal_masks.shape[1]
        number = step // lasts
        if step % lasts:
            return None
        return Goal(self.goal_images[:, number], self.goal_masks[:, number], self.goal_interactions[:, number])

    def others(self) -> dict[str, "Shown"]:
        """The same with other images, which are negatives; and with other goals, which mark all the rest."""
        return {
            "images": replace(self, images=255 - self.images),
            "goals": replace(self, goal_masks=~self.goal_masks),
        }

    def on(self, device: torch.device) -> "Shown":
        return Shown(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass
class Played:
    said: dict[str, Tensor]  # the scores of all choices (B, T, choices), and by head what is seen (B, T, ...)
    choices: Tensor  # (B, T, factors), that are drawn from them


@torch.no_grad()
def play(model: Any, shown: Shown, done: Tensor | None = None) -> Played:
    """Step by step, each environment drawing from a seed of its own. What is `done` is what was drawn unless given."""
    count, steps = shown.images.shape[:2]
    shown, state = shown.on(model.device), model.initial_state(count)
    draws = [torch.Generator().manual_seed(number) for number in range(count)]
    said, choices = [], []
    for step in range(steps):
        scores, state = model.look(shown.images[:, step], shown.goal(step), state)
        drawn = model.action_heads.sample(scores, 1.0, draws)
        said.append({SCORES: torch.cat(list(scores.values()), dim=-1)} | state.seen)
        choices.append(drawn.cpu())
        state = replace(state, previous_actions=drawn if done is None else done[:, step].to(model.device))
    told = {name: torch.stack([each[name].float().cpu() for each in said], dim=1) for name in said[0]}
    return Played(told, torch.stack(choices, dim=1))


@dataclass
class Rocket2SelfTest:
    """Distances are root mean squares, as shares of that of what is told."""

    shown: Shown
    played: Played  # by the trained policy
    tolerances: dict[str, float]  # by dtype, how far off the scores and what is seen may be
    most_others: dict[str, float]  # by dtype, the share of the choices that may be drawn otherwise
    effects: dict[str, float]  # how far off the scores are with other images and with other goals
    versions: dict[str, str]

    def write(self, path: Path) -> None:
        tensors = vars(self.shown) | {"choices": self.played.choices}
        tensors |= {f"{SEEN}{name}": value for name, value in self.played.said.items()}
        told = {name: getattr(self, name) for name in ("tolerances", "most_others", "effects", "versions")}
        tensors = {name: value.contiguous().cpu() for name, value in tensors.items()}
        save_file(tensors, path, metadata={"self_test": json.dumps(told, sort_keys=True)})


def read_goal_test(path: Path) -> Rocket2SelfTest:
    with safe_open(path, "pt") as file:
        told = json.loads(file.metadata()["self_test"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
    choices = tensors.pop("choices")
    said = {name.removeprefix(SEEN): tensors.pop(name) for name in list(tensors) if name.startswith(SEEN)}
    return Rocket2SelfTest(shown=Shown(**tensors), played=Played(said, choices), **told)


@dataclass
class Rocket2Report:
    dtype: str
    distances: dict[str, float]  # of the scores, and of what each head sees
    tolerance: float
    others: float  # the share of the choices that were drawn otherwise
    most_others: float
    effects: dict[str, float]
    effects_wanted: dict[str, float]
    versions: dict[str, str]  # with which the policy was published

    def problem(self) -> str:
        """What is wrong, in a sentence without its end; empty if nothing is. (A distance may be no number.)"""
        for name, off in self.distances.items():
            if not off <= self.tolerance:
                return (
                    f"{called(name)} are {off:.2%} off those that this policy was published with, in {self.dtype} "
                    f"they may be {self.tolerance:.2%} off"
                )
        for name, effect in self.effects.items():
            if not effect >= self.effects_wanted[name] / 2:
                return (
                    f"{OTHER[name]} change the scores of actions by {effect:.2%}, "
                    f"where this policy was published they did by {self.effects_wanted[name]:.2%}"
                )
        if self.others > self.most_others:
            return (
                f"{self.others:.0%} of the choices are drawn otherwise from the same seed, in {self.dtype} "
                f"{self.most_others:.0%} may be"
            )
        return ""

    def sentences(self) -> list[str]:
        allowed = f"in {self.dtype}, at most {self.tolerance:.2%}"
        return [
            *(f"{called(name)} {off:.2%} off {allowed}" for name, off in self.distances.items()),
            f"{self.others:.0%} of the choices drawn otherwise, at most {self.most_others:.0%}",
            *(f"{OTHER[name]} change the scores by {effect:.2%}" for name, effect in self.effects.items()),
        ]


def called(name: str) -> str:
    return "the scores of actions" if name == SCORES else f"the values of the head {name!r}"


def run_goal_test(model: Any, test: Rocket2SelfTest) -> Rocket2Report:
    """Plays the steps three times, as they were and with other images and goals; ValueError if it is not what was
    published."""
    wanted, kind = test.played, kind_of_number(model)
    played = play(model, test.shown, wanted.choices)
    report = Rocket2Report(
        dtype=str(model.dtype).removeprefix("torch."),
        distances=distances(played, wanted),
        tolerance=test.tolerances[kind],
        others=others(played, wanted),
        most_others=test.most_others[kind],
        effects=effects(model, test.shown, played, wanted.choices),
        effects_wanted=test.effects,
        versions=test.versions,
    )
    require_none(report.problem(), report.versions)
    return report


def distances(played: Played, wanted: Played) -> dict[str, float]:
    """Of what is told by the heads that the policy has; it may have been loaded without those for people to see."""
    told = [SCORES, *sorted(wanted.said.keys() & played.said.keys() - {SCORES})]
    return {name: distance(played.said[name], wanted.said[name]) for name in told}


def others(played: Played, wanted: Played) -> float:
    return float((played.choices != wanted.choices).double().mean())


def effects(model: Any, shown: Shown, played: Played, done: Tensor) -> dict[str, float]:
    """How far off the scores are if something else is shown."""
    scores = played.said[SCORES]
    return {name: distance(play(model, other, done).said[SCORES], scores) for name, other in shown.others().items()}
