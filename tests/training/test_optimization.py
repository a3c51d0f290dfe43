"""Schedules, parameter groups, clipping, skipped steps and the moving average, against manual values and torch."""

import math

import pytest
import torch
from torch import nn

from rocket_hf.training.optimization import (
    MovingAverage,
    alignment_weight,
    clip_gradients,
    create_optimizer,
    learning_rate_factor,
    set_learning_rates,
    skip_if_not_finite,
)
from rocket_hf.training.recipe import AlignmentSettings, OptimizerConfig, ScheduleConfig
from rocket_hf.training.vla.parts import part_of


class TinyModel(nn.Module):
    """Model with two weights in each parameter group, with the names of a policy's weights."""

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
def test_learning_rates_follow_the_schedule(schedule, expected):
    for step, factor in expected.items():
        assert learning_rate_factor(schedule, step, 100) == pytest.approx(factor), step


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (None, {0: 0, 9: 0}),
        (AlignmentSettings(weight=0.5), {0: 0.5, 999: 0.5}),
        (AlignmentSettings(weight=0.5, schedule="stop", until=3), {0: 0.5, 2: 0.5, 3: 0, 9: 0}),
        (AlignmentSettings(weight=0.5, schedule="linear", until=10), {0: 0.5, 5: 0.25, 9: 0.05, 10: 0, 11: 0}),
    ],
)
def test_alignment_weight_follows_its_schedule(recipe, expected):
    for step, weight in expected.items():
        assert alignment_weight(recipe, step) == pytest.approx(weight), step


def test_heads_projector_and_policy_have_separate_learning_rates():
    model = TinyModel()
    optimizer = create_optimizer(model, OptimizerConfig(lr=1.0, heads_lr=2.0, projector_lr=3.0), part_of)
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    assert {name: rates[id(weight)] for name, weight in model.named_parameters()} == {
        "policy.embed_tokens.weight": 1.0, "policy.embed_tokens.bias": 1.0,
        "policy.action_out.weight": 2.0, "policy.action_out.bias": 2.0,
        "alignment_head.weight": 3.0, "alignment_head.bias": 3.0,
    }  # fmt: skip
    expected = {"rate/heads": 1.0, "rate/projector": 1.5, "rate/policy": 0.5}
    assert [set_learning_rates(optimizer.param_groups, 0.5), set_learning_rates(optimizer.param_groups, 0.5)] == [
        expected,
        expected,
    ]
    assert {group["lr"] for group in optimizer.param_groups} == {1.0, 1.5, 0.5}


def test_default_learning_rate_is_used_for_all_groups_without_frozen_weights():
    model = TinyModel()
    model.policy["action_out"].requires_grad_(False)
    optimizer = create_optimizer(model, OptimizerConfig(lr=1e-3), part_of)
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {"projector": 1e-3, "policy": 1e-3}


def step_with_gradient(model: TinyModel, optimizer: torch.optim.Optimizer, value: float) -> torch.Tensor:
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, value)
    skipped = skip_if_not_finite(optimizer, clip_gradients(model.parameters(), clip_norm=1.0))
    optimizer.step()
    return skipped


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_step_with_non_finite_gradients_changes_no_weight_moment_or_step_count(bad):
    model = TinyModel()
    optimizer = create_optimizer(model, OptimizerConfig(lr=0.1), part_of)
    assert step_with_gradient(model, optimizer, 1.0) == 0
    weights = [weight.detach().clone() for weight in model.parameters()]
    states = [{key: value.clone() for key, value in optimizer.state[weight].items()} for weight in model.parameters()]
    assert step_with_gradient(model, optimizer, bad) == 1
    for weight, previous, state in zip(model.parameters(), weights, states, strict=True):
        assert torch.equal(weight, previous)
        assert all(torch.equal(optimizer.state[weight][key], value) for key, value in state.items())
        assert state["step"] == 1
    assert step_with_gradient(model, optimizer, 1.0) == 0
    assert not torch.equal(next(model.parameters()), weights[0])


def test_first_step_with_non_finite_gradients_is_skipped():
    model = TinyModel()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    optimizer = create_optimizer(model, OptimizerConfig(), part_of)
    step_with_gradient(model, optimizer, math.nan)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("clip_norm", [None, 0.5, 100.0])
def test_gradient_norm_and_clipped_gradients_equal_torchs(clip_norm):
    ours, torchs = TinyModel(), TinyModel()
    for model in (ours, torchs):
        draw = torch.Generator().manual_seed(1)
        for weight in model.parameters():
            weight.grad = torch.randn(weight.shape, generator=draw)
    ours.alignment_head.bias.grad = torchs.alignment_head.bias.grad = None
    norm = clip_gradients(ours.parameters(), clip_norm)
    expected = nn.utils.clip_grad_norm_(torchs.parameters(), clip_norm or math.inf)
    assert torch.equal(norm, expected)
    for one, other in zip(ours.parameters(), torchs.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=0)


def test_moving_average_by_hand_and_swapping_twice_restores_the_weights():
    model = TinyModel()
    model.policy["embed_tokens"].requires_grad_(False)
    first = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    average = MovingAverage(model, decay=0.75)
    assert not any(name.startswith("policy.embed_tokens") for name in average.weights)
    for _ in range(2):
        with torch.no_grad():
            model.alignment_head.weight += 1
        average.update(model)
    # 0.75 x (0.75 w + 0.25 (w + 1)) + 0.25 (w + 2) = w + 0.6875
    name = "alignment_head.weight"
    torch.testing.assert_close(average.weights[name], first[name] + 0.6875)
    average.swap(model)
    torch.testing.assert_close(model.alignment_head.weight.detach(), first[name] + 0.6875)
    torch.testing.assert_close(average.weights[name], first[name] + 2)
    average.swap(model)
    torch.testing.assert_close(model.alignment_head.weight.detach(), first[name] + 2)
