"""Which tensor of a checkpoint becomes which of ours: each is used, dropped for a written reason, or an error."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rocket_hf.errors import UserError

from .checkpoint import Checkpoint


@dataclass(frozen=True)
class Rename:
    """`source`, a pattern of whole names, becomes `target`, a template of its groups.

    `rows` flattens all but the last dimension, for parameters that were stored with leading ones. Several names may
    become one target by rules of rows: they are stacked in the order of the rules.
    """

    source: str
    target: str
    rows: bool = False


@dataclass(frozen=True)
class Drop:
    source: str
    reason: str


@dataclass
class Plan:
    """By our names: the names in the checkpoint that make them up; and by names there: why they are left out."""

    moves: dict[str, list[str]] = field(default_factory=dict)
    rows: set[str] = field(default_factory=set)
    dropped: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of our weights, in the model's order


def make_plan(checkpoint: Checkpoint, shapes: dict[str, tuple[int, ...]], rules: Iterable[Rename | Drop]) -> Plan:
    """For a model of these weights. The first rule whose pattern fits a name decides. Raises with the name of what does
    not fit."""
    rules, plan = list(rules), Plan(shapes=shapes)
    order = {name: deciding_rule(name, rules) for name in checkpoint.entries}
    for name, number in sorted(order.items(), key=lambda item: (item[1], item[0])):
        rule = rules[number]
        if isinstance(rule, Drop):
            plan.dropped[name] = rule.reason
            continue
        target = re.sub(rule.source, rule.target, name)
        if target in plan.moves and not rule.rows:
            raise UserError(f"{name} and {plan.moves[target][0]} would both become {target}")
        plan.moves.setdefault(target, []).append(name)
        if rule.rows:
            plan.rows.add(target)
    check_complete(checkpoint, plan)
    return plan


def deciding_rule(name: str, rules: list[Rename | Drop]) -> int:
    for number, rule in enumerate(rules):
        if re.fullmatch(rule.source, name):
            return number
    raise UserError(f"the checkpoint has the tensor {name}, which this family does not know")


def check_complete(checkpoint: Checkpoint, plan: Plan) -> None:
    expected = plan.shapes
    if missing := sorted(expected.keys() - plan.moves.keys()):
        raise UserError(f"the checkpoint lacks {len(missing)} tensors of the policy, first the one for {missing[0]}")
    if extra := sorted(plan.moves.keys() - expected.keys()):
        raise UserError(f"the checkpoint has {plan.moves[extra[0]]}, but the policy has no {extra[0]}")
    for target, sources in plan.moves.items():
        shapes = [checkpoint.shape(source) for source in sources]
        found = stacked_shape(shapes) if target in plan.rows else shapes[0]
        if found != expected[target]:
            raise UserError(f"{sources[0]} has the shape {shapes[0]}, the policy's {target} has {expected[target]}")


def stacked_shape(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    return sum(math.prod(shape[:-1]) for shape in shapes), shapes[0][-1]


def read_target(checkpoint: Checkpoint, plan: Plan, target: str) -> Tensor:
    """One of our weights, from the tensors of the checkpoint that make it up."""
    tensors = [checkpoint.read(source) for source in plan.moves[target]]
    return torch.cat([tensor.flatten(0, -2) for tensor in tensors]) if target in plan.rows else tensors[0]
