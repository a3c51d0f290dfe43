"""Which tensor of a checkpoint becomes which of ours: each is used, dropped for a written reason, or an error."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from ..modeling.configuration_rocket import RocketConfig
from ..modeling.modeling_rocket import RocketForActionPrediction
from .checkpoint import Checkpoint


@dataclass(frozen=True)
class Rename:
    """`source`, a pattern of whole names, becomes `target`, a template of its groups."""

    source: str
    target: str


@dataclass(frozen=True)
class Drop:
    source: str
    reason: str


@dataclass
class Plan:
    """By our names: the names in the checkpoint; and by names in the checkpoint: why they are left out."""

    moves: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)


def make_plan(checkpoint: Checkpoint, config: RocketConfig, rules: Iterable[Rename | Drop]) -> Plan:
    """The first rule whose pattern fits a name decides. Raises with the name of what does not fit."""
    rules, plan = list(rules), Plan()
    for name in sorted(checkpoint.entries):
        rule = next((rule for rule in rules if re.fullmatch(rule.source, name)), None)
        if rule is None:
            raise ValueError(f"the checkpoint has the tensor {name}, which this family does not know")
        if isinstance(rule, Drop):
            plan.dropped[name] = rule.reason
            continue
        target = re.sub(rule.source, rule.target, name)
        if target in plan.moves:
            raise ValueError(f"{name} and {plan.moves[target]} would both become {target}")
        plan.moves[target] = name
    check_complete(checkpoint, plan, expected_shapes(config))
    return plan


def expected_shapes(config: RocketConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = RocketForActionPrediction(config)
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def check_complete(checkpoint: Checkpoint, plan: Plan, expected: dict[str, tuple[int, ...]]) -> None:
    if missing := sorted(expected.keys() - plan.moves.keys()):
        raise ValueError(f"the checkpoint lacks {len(missing)} tensors of the policy, first the one for {missing[0]}")
    if extra := sorted(plan.moves.keys() - expected.keys()):
        raise ValueError(f"the checkpoint has {plan.moves[extra[0]]}, but the policy has no {extra[0]}")
    for target, source in plan.moves.items():
        if checkpoint.shape(source) != expected[target]:
            raise ValueError(
                f"{source} has the shape {checkpoint.shape(source)}, the policy's {target} has {expected[target]}"
            )
