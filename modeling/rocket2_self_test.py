"""Self-test of a published ROCKET-2: checks that it still gives the recorded scores, predictions and choices.

The file holds a few steps of some environments, whose goals change on the way, and the outputs of the trained policy.
The previous actions of each step come from the file, so that one different choice does not change all later steps.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UserError
from .rocket2_interface import Goal
from .self_test import (
    check_finite,
    check_tolerances,
    check_versions,
    raise_on_failure,
    read_tensors,
    relative_distance,
    tolerance_dtype,
    write_tensors,
)

SCORES = "scores"  # name of the concatenated scores of all action factors
OUTPUT_PREFIX = "seen."  # of the output tensors in the file
CHANGED_INPUTS = {"images": "inverting the images", "goals": "inverting the goal masks"}


@dataclass
class Rocket2Scenario:
    """Inputs of B environments over T steps: an image for each step, and G goals that each hold for T / G steps."""

    images: Tensor  # (B, T, 3, H, W) uint8
    goal_images: Tensor  # (B, G, 3, H, W) uint8
    goal_masks: Tensor  # (B, G, H, W) bool
    goal_interactions: Tensor  # (B, G)

    def goal_at(self, step: int) -> Goal | None:
        """Return the goal that starts at this step, or None."""
        duration = self.images.shape[1] // self.goal_masks.shape[1]
        number = step // duration
        if step % duration:
            return None
        return Goal(self.goal_images[:, number], self.goal_masks[:, number], self.goal_interactions[:, number])

    def changed_inputs(self) -> dict[str, "Rocket2Scenario"]:
        """Return two copies by name: "images" with inverted images, "goals" with inverted goal masks."""
        return {
            "images": replace(self, images=255 - self.images),
            "goals": replace(self, goal_masks=~self.goal_masks),
        }

    def to(self, device: torch.device) -> "Rocket2Scenario":
        return Rocket2Scenario(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass
class Rocket2Responses:
    """Outputs of a policy for a scenario."""

    outputs: dict[str, Tensor]  # "scores" of all choices (B, T, choices), and predictions by auxiliary head (B, T, ...)
    choices: Tensor  # (B, T, factors), sampled from the scores


@torch.no_grad()
def run_scenario(model: Any, scenario: Rocket2Scenario, actions: Tensor | None = None) -> Rocket2Responses:
    """Run a policy step by step; each environment samples with a generator of its own.

    Args:
        model: A ROCKET-2 policy.
        scenario: Images and goals.
        actions: (B, T, factors), choices that the next step gets as its previous action, instead of the sampled ones.
    """
    count, steps = scenario.images.shape[:2]
    scenario, state = scenario.to(model.device), model.initial_state(count)
    generators = [torch.Generator().manual_seed(number) for number in range(count)]
    outputs, choices = [], []
    for step in range(steps):
        scores, state = model.score_actions(scenario.images[:, step], scenario.goal_at(step), state)
        sampled = model.action_heads.sample(scores, 1.0, generators)
        # `state.seen` holds the predictions of the auxiliary heads.
        outputs.append({SCORES: torch.cat(list(scores.values()), dim=-1)} | state.seen)
        choices.append(sampled.cpu())
        state = replace(state, previous_actions=sampled if actions is None else actions[:, step].to(model.device))
    stacked = {name: torch.stack([output[name].float().cpu() for output in outputs], dim=1) for name in outputs[0]}
    return Rocket2Responses(stacked, torch.stack(choices, dim=1))


@dataclass
class Rocket2SelfTest:
    """Recorded scenario, responses of the trained policy, and tolerances.

    Distances are root mean squares, relative to that of the recorded values. The file's metadata has the fields
    from `tolerances` on under these names.
    """

    scenario: Rocket2Scenario
    responses: Rocket2Responses
    tolerances: dict[str, float]  # by dtype, largest accepted distance of the outputs
    most_others: dict[str, float]  # by dtype, largest accepted share of choices that differ
    effects: dict[str, float]  # distance of the scores with changed "images" and with changed "goals"
    versions: dict[str, str]  # of the libraries with which the policy was published

    def write(self, path: Path) -> None:
        tensors = vars(self.scenario) | {"choices": self.responses.choices}
        tensors |= {f"{OUTPUT_PREFIX}{name}": value for name, value in self.responses.outputs.items()}
        metadata = {name: getattr(self, name) for name in ("tolerances", "most_others", "effects", "versions")}
        write_tensors(path, tensors, metadata)


def read_rocket2_self_test(path: Path) -> Rocket2SelfTest:
    tensors, metadata = read_tensors(path)
    choices = tensors.pop("choices", torch.empty(0))
    names = [name for name in tensors if name.startswith(OUTPUT_PREFIX)]
    outputs = {name.removeprefix(OUTPUT_PREFIX): tensors.pop(name) for name in names}
    try:
        test = Rocket2SelfTest(Rocket2Scenario(**tensors), Rocket2Responses(outputs, choices), **metadata)
        check_rocket2_self_test(test)
    except (TypeError, ValueError) as error:  # missing or unknown tensors, or metadata of other types
        raise UserError(f"{path} is not a complete self-test ({error}): publish the policy again") from error
    return test


def check_rocket2_self_test(test: Rocket2SelfTest) -> None:
    """Raise ValueError if the self-test lacks a value or has one of another form."""
    check_tolerances(test.tolerances, "tolerances")
    check_tolerances(test.most_others, "most_others")
    check_versions(test.versions)
    if not isinstance(test.effects, dict) or test.effects.keys() != CHANGED_INPUTS.keys():
        raise ValueError("it has no effects of images and goals")
    check_finite(test.effects.values(), "effects")
    scenario, responses = test.scenario, test.responses
    check_scenario(scenario)
    steps = scenario.images.shape[:2]
    if responses.choices.dim() != 3 or any(value.shape[:2] != steps for value in all_responses(responses)):
        raise ValueError("its responses are not those of each environment and step")
    if SCORES not in responses.outputs:
        raise ValueError("it has no scores of actions")


def all_responses(responses: Rocket2Responses) -> list[Tensor]:
    return [responses.choices, *responses.outputs.values()]


def check_scenario(scenario: Rocket2Scenario) -> None:
    """Raise ValueError if the images and goals are not those of B environments, T steps and G goals."""
    images, goals, masks = scenario.images, scenario.goal_images, scenario.goal_masks
    if images.dim() != 5 or images.dtype != torch.uint8 or goals.dtype != torch.uint8 or masks.dtype != torch.bool:
        raise ValueError("its images or its goal masks are not images")
    environments, steps, channels, *size = images.shape
    count = masks.shape[1] if masks.dim() == 4 else 0
    if not environments or not steps or not count or steps % count:
        raise ValueError("its goals do not divide its steps")
    expected = [(environments, count, channels, *size), (environments, count, *size), (environments, count)]
    if [goals.shape, masks.shape, scenario.goal_interactions.shape] != expected:
        raise ValueError("its goals do not fit its images")


@dataclass
class Rocket2SelfTestReport:
    """Result of a self-test. Distances are relative root mean squares.

    Published code of all versions returns these fields, so they must not be renamed.
    """

    dtype: str
    distances: dict[str, float]  # of the scores and of each auxiliary head's predictions from the recorded ones
    tolerance: float
    others: float  # share of the choices that differ from the recorded ones
    most_others: float  # largest accepted share
    effects: dict[str, float]  # distance of the scores with changed "images" and with changed "goals"
    effects_wanted: dict[str, float]  # the same distances when the policy was published
    versions: dict[str, str]  # of the libraries with which the policy was published

    def failure(self) -> str:
        """Return why the test failed, or an empty string. Comparisons of distances are written so that NaN fails."""
        for name, distance in self.distances.items():
            if not distance <= self.tolerance:
                return (
                    f"{describe_output(name)} differ by {distance:.2%} from those that this policy was published with; "
                    f"in {self.dtype} they may differ by {self.tolerance:.2%}"
                )
        for name, effect in self.effects.items():
            if not effect >= self.effects_wanted[name] / 2:
                return (
                    f"{CHANGED_INPUTS[name]} changes the scores of actions by {effect:.2%}, but by "
                    f"{self.effects_wanted[name]:.2%} where this policy was published"
                )
        if self.others > self.most_others:
            return (
                f"{self.others:.0%} of the choices that are sampled with the same seed differ; in {self.dtype} at most "
                f"{self.most_others:.0%} may differ"
            )
        return ""

    def summary_lines(self) -> list[str]:
        limit = f"in {self.dtype} (at most {self.tolerance:.2%})"
        return [
            *(f"{describe_output(name)} differ by {distance:.2%} {limit}" for name, distance in self.distances.items()),
            f"{self.others:.0%} of the sampled choices differ (at most {self.most_others:.0%})",
            *(f"{CHANGED_INPUTS[name]} changes the scores by {effect:.2%}" for name, effect in self.effects.items()),
        ]


def describe_output(name: str) -> str:
    return "the scores of actions" if name == SCORES else f"the values of the head {name!r}"


def run_rocket2_self_test(model: Any, test: Rocket2SelfTest) -> Rocket2SelfTestReport:
    """Run the recorded scenario, also with inverted images and with inverted goals; raise `UserError` on failure."""
    recorded, dtype = test.responses, tolerance_dtype(model)
    responses = run_scenario(model, test.scenario, recorded.choices)
    report = Rocket2SelfTestReport(
        dtype=str(model.dtype).removeprefix("torch."),
        distances=output_distances(responses, recorded),
        tolerance=test.tolerances[dtype],
        others=changed_choices(responses, recorded),
        most_others=test.most_others[dtype],
        effects=input_effects(model, test.scenario, responses, recorded.choices),
        effects_wanted=test.effects,
        versions=test.versions,
    )
    raise_on_failure(report.failure(), report.versions)
    return report


def output_distances(responses: Rocket2Responses, recorded: Rocket2Responses) -> dict[str, float]:
    """Return the distance of each output by name, without auxiliary heads with which the policy was not loaded."""
    names = [SCORES, *sorted(recorded.outputs.keys() & responses.outputs.keys() - {SCORES})]
    return {name: relative_distance(responses.outputs[name], recorded.outputs[name]) for name in names}


def changed_choices(responses: Rocket2Responses, recorded: Rocket2Responses) -> float:
    """Return the share of the sampled choices that differ."""
    return float((responses.choices != recorded.choices).double().mean())


def input_effects(
    model: Any, scenario: Rocket2Scenario, responses: Rocket2Responses, actions: Tensor
) -> dict[str, float]:
    """Return the distance of the scores with changed images and with changed goals from those of `responses`."""
    scores = responses.outputs[SCORES]
    return {
        name: relative_distance(run_scenario(model, changed, actions).outputs[SCORES], scores)
        for name, changed in scenario.changed_inputs().items()
    }
