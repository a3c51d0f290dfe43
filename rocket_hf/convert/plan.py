"""Conversion plan: every tensor of a checkpoint becomes a weight, is dropped with a reason, or is an error."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rocket_hf.checkpoint_files import Checkpoint
from rocket_hf.errors import UserError


@dataclass(frozen=True)
class Rename:
    """Rule that renames tensors: `source` is a pattern of full names, `target` a template of its groups.

    `stack_rows` flattens all dimensions but the last, for parameters stored with leading dimensions of size 1. Several
    sources may become one target if their rules stack rows: they are concatenated in the order of the rules.
    """

    source: str
    target: str
    stack_rows: bool = False


@dataclass(frozen=True)
class Drop:
    """Rule that leaves out tensors: `source` is a pattern of full names."""

    source: str
    reason: str


@dataclass
class ConversionPlan:
    """Assignment of the tensors of a checkpoint to the weights of a model."""

    sources: dict[str, list[str]] = field(default_factory=dict)  # weight -> names in the checkpoint
    stacked: set[str] = field(default_factory=set)  # weights whose sources are concatenated by rows
    dropped: dict[str, str] = field(default_factory=dict)  # name in the checkpoint -> reason
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # weight -> shape, in the model's order


def make_plan(
    checkpoint: Checkpoint, shapes: dict[str, tuple[int, ...]], rules: Iterable[Rename | Drop]
) -> ConversionPlan:
    """Assign all tensors of `checkpoint` to the weights with these `shapes`.

    The first rule that matches a name applies. A tensor without a rule, a weight without a tensor and a wrong shape
    raise UserError.
    """
    rules, plan = list(rules), ConversionPlan(shapes=shapes)
    order = {name: find_rule(name, rules) for name in checkpoint.entries}
    for name, number in sorted(order.items(), key=lambda item: (item[1], item[0])):
        rule = rules[number]
        if isinstance(rule, Drop):
            plan.dropped[name] = rule.reason
            continue
        target = re.sub(rule.source, rule.target, name)
        if target in plan.sources and not rule.stack_rows:
            raise UserError(
                f"The tensors {name} and {plan.sources[target][0]} would both become {target}: remove one of them"
            )
        plan.sources.setdefault(target, []).append(name)
        if rule.stack_rows:
            plan.stacked.add(target)
    check_complete(checkpoint, plan)
    return plan


def find_rule(name: str, rules: list[Rename | Drop]) -> int:
    for number, rule in enumerate(rules):
        if re.fullmatch(rule.source, name):
            return number
    raise UserError(f"The checkpoint has an unexpected tensor {name}: check that FAMILY matches the checkpoint")


def check_complete(checkpoint: Checkpoint, plan: ConversionPlan) -> None:
    expected = plan.shapes
    if missing := sorted(expected.keys() - plan.sources.keys()):
        raise UserError(
            f"The checkpoint has no tensor for {len(missing)} of the policy's weights, for example {missing[0]}: "
            "check that it is complete and that FAMILY matches it"
        )
    if extra := sorted(plan.sources.keys() - expected.keys()):
        raise UserError(
            f"The checkpoint has a tensor {plan.sources[extra[0]][0]}, but the policy has no weight {extra[0]}: check "
            "that FAMILY matches the checkpoint"
        )
    for target, sources in plan.sources.items():
        shapes = [checkpoint.shape(source) for source in sources]
        shape = stacked_shape(shapes) if target in plan.stacked else shapes[0]
        if shape != expected[target]:
            raise UserError(
                f"{sources[0]} has shape {shapes[0]}, but the policy's weight {target} has shape {expected[target]}: "
                "the checkpoint is not supported"
            )


def stacked_shape(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    return sum(math.prod(shape[:-1]) for shape in shapes), shapes[0][-1]


def read_target(checkpoint: Checkpoint, plan: ConversionPlan, target: str) -> Tensor:
    """Read the weight `target` from its tensors in the checkpoint."""
    tensors = [checkpoint.read(source) for source in plan.sources[target]]
    return torch.cat([tensor.flatten(0, -2) for tensor in tensors]) if target in plan.stacked else tensors[0]
