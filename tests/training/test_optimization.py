"""Rates, alignment weights, steps that are left out, the moving average: against hand-computed values and torch."""

import math

import pytest
import torch
from torch import nn

from rocket_hf.training.optimization import (
    MovingAverage,
    alignment_weight,
    gradient_norm,
    make_optimizer,
    rate_factor,
    set_rates,
    skip_if_not_finite,
)
from rocket_hf.training.recipe import AlignmentRecipe, OptimizerConfig, ScheduleConfig


class Robot(nn.Module):
    """Two weights of each kind, by the names of a policy."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.policy = nn.ModuleDict({name: nn.Linear(2, 1) for name in ("embed_tokens", "action_out")})
        self.alignment_head = nn.Linear(2, 1)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (ScheduleConfig(), {0: 1, 99: 1}),
        (ScheduleConfig(warmup=4), {0: 0.25, 1: 0.5, 3: 1, 4: 1}),
        (ScheduleConfig("step", at=[3, 6]), {2: 1, 3: 0.1, 5: 0.1, 6: 0.01}),
        (ScheduleConfig("step", warmup=2, at=[3], factor=0.5), {0: 0.5, 2: 1, 3: 0.5}),
        (ScheduleConfig("cosine", final=0.2), {0: 1, 25: 0.6 + 0.4 * math.sqrt(0.5), 50: 0.6, 100: 0.2}),
        (ScheduleConfig("cosine", warmup=10, until=20), {9: 1, 10: 1, 15: 0.55, 20: 0.1, 99: 0.1}),
    ],
)
def test_rates_follow_their_schedule(schedule, expected):
    for step, factor in expected.items():
        assert rate_factor(schedule, step, 100) == pytest.approx(factor), step


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (None, {0: 0, 9: 0}),
        (AlignmentRecipe(weight=0.5), {0: 0.5, 999: 0.5}),
        (AlignmentRecipe(weight=0.5, schedule="stop", until=3), {0: 0.5, 2: 0.5, 3: 0, 9: 0}),
        (AlignmentRecipe(weight=0.5, schedule="linear", until=10), {0: 0.5, 5: 0.25, 9: 0.05, 10: 0, 11: 0}),
    ],
)
def test_alignment_counts_as_its_schedule_says(recipe, expected):
    for step, weight in expected.items():
        assert alignment_weight(recipe, step) == pytest.approx(weight), step


def test_heads_projector_and_policy_have_rates_of_their_own():
    robot = Robot()
    optimizer = make_optimizer(robot, OptimizerConfig(lr=1.0, heads_lr=2.0, projector_lr=3.0))
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    assert {name: rates[id(weight)] for name, weight in robot.named_parameters()} == {
        "policy.embed_tokens.weight": 1.0, "policy.embed_tokens.bias": 1.0,
        "policy.action_out.weight": 2.0, "policy.action_out.bias": 2.0,
        "alignment_head.weight": 3.0, "alignment_head.bias": 3.0,
    }  # fmt: skip
    expected = {"rate/heads": 1.0, "rate/projector": 1.5, "rate/policy": 0.5}
    assert [set_rates(optimizer, 0.5), set_rates(optimizer, 0.5)] == [expected, expected]
    assert {group["lr"] for group in optimizer.param_groups} == {1.0, 1.5, 0.5}


def test_one_rate_stands_for_all_and_frozen_weights_are_left_out():
    robot = Robot()
    robot.policy["action_out"].requires_grad_(False)
    optimizer = make_optimizer(robot, OptimizerConfig(lr=1e-3))
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {"projector": 1e-3, "policy": 1e-3}


def step(robot: Robot, optimizer: torch.optim.Optimizer, scale: float) -> torch.Tensor:
    for weight in robot.parameters():
        weight.grad = torch.full_like(weight, scale)
    skipped = skip_if_not_finite(optimizer, gradient_norm(robot.parameters(), clip=1.0))
    optimizer.step()
    return skipped


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_neither_weights_nor_moments_nor_their_count(bad):
    robot = Robot()
    optimizer = make_optimizer(robot, OptimizerConfig(lr=0.1))
    assert step(robot, optimizer, 1.0) == 0
    weights = [weight.detach().clone() for weight in robot.parameters()]
    states = [{key: value.clone() for key, value in optimizer.state[weight].items()} for weight in robot.parameters()]
    assert step(robot, optimizer, bad) == 1
    for weight, former, state in zip(robot.parameters(), weights, states, strict=True):
        assert torch.equal(weight, former)
        assert all(torch.equal(optimizer.state[weight][key], value) for key, value in state.items())
        assert state["step"] == 1
    assert step(robot, optimizer, 1.0) == 0
    assert not torch.equal(next(robot.parameters()), weights[0])


def test_a_first_step_that_is_not_finite_is_left_out_too():
    robot = Robot()
    before = {name: weight.clone() for name, weight in robot.state_dict().items()}
    optimizer = make_optimizer(robot, OptimizerConfig())
    step(robot, optimizer, math.nan)
    assert all(torch.equal(weight, before[name]) for name, weight in robot.state_dict().items())


@pytest.mark.parametrize("clip", [None, 0.5, 100.0])
def test_the_norm_and_the_clipped_gradients_are_those_of_torch(clip):
    mine, theirs = Robot(), Robot()
    for robot in (mine, theirs):
        draw = torch.Generator().manual_seed(1)
        for weight in robot.parameters():
            weight.grad = torch.randn(weight.shape, generator=draw)
    mine.alignment_head.bias.grad = theirs.alignment_head.bias.grad = None
    norm = gradient_norm(mine.parameters(), clip)
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), clip or math.inf)
    assert torch.equal(norm, expected)
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=0)


def test_the_moving_average_is_one_and_swapping_twice_changes_nothing():
    robot = Robot()
    robot.policy["embed_tokens"].requires_grad_(False)
    first = {name: weight.detach().clone() for name, weight in robot.named_parameters()}
    average = MovingAverage(robot, decay=0.75)
    assert not any(name.startswith("policy.embed_tokens") for name in average.weights)
    for _ in range(2):
        with torch.no_grad():
            robot.alignment_head.weight += 1
        average.update(robot)
    # 0.75 x (0.75 w + 0.25 (w + 1)) + 0.25 (w + 2) = w + 0.6875
    name = "alignment_head.weight"
    torch.testing.assert_close(average.weights[name], first[name] + 0.6875)
    average.swap(robot)
    torch.testing.assert_close(robot.alignment_head.weight.detach(), first[name] + 0.6875)
    torch.testing.assert_close(average.weights[name], first[name] + 2)
    average.swap(robot)
    torch.testing.assert_close(robot.alignment_head.weight.detach(), first[name] + 2)
