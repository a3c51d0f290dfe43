"""PCGrad: projected gradients by hand, accumulation over passes, two ranks, and unsupported settings."""

import pytest
import torch
from accelerate import Accelerator

from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.policy_interface import weighted_loss
from rocket_hf.tiny import tiny_config
from rocket_hf.training.vla.gradient_projection import GradientProjection, remove_conflicts
from rocket_hf.training.vla.loss_gradients import loss_terms

from ..conftest import (
    checkpoint_tensors,
    largest_difference,
    reset_accelerate_state,
    run_ranks,
    run_training,
    set_options,
)

pytestmark = pytest.mark.needs_lerobot

PROJECTION = {"optimizer__conflicts": "project", "run__steps": 4, "run__save_every": 4}


def test_two_gradients_by_hand():
    """(1, 0) and (-1, 1) lose their component along each other; orthogonal and agreeing gradients do not change."""
    assert remove_conflicts(torch.tensor([[1.0, 0], [-1, 1]])).tolist() == [[0.5, 0.5], [0, 1]]
    without_conflict = torch.tensor([[1.0, 0, 0], [2, 1, 0], [0, 0, 3], [0, 0, 0]])
    assert torch.equal(remove_conflicts(without_conflict), without_conflict)


def test_projected_gradient_conflicts_with_none_of_two():
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        gradients = torch.randn(2, 3, generator=draw)
        projected = remove_conflicts(gradients)
        assert (projected @ gradients.T).min() > -1e-6
        assert (projected.sum(dim=0) @ gradients.T).min() > -1e-6


def pop_gradients(policy) -> list[torch.Tensor]:
    gradients = [weight.grad.clone() for weight in policy.parameters() if weight.grad is not None]
    policy.zero_grad()
    return gradients


def weighted(losses: dict[str, torch.Tensor], weight: float) -> dict[str, torch.Tensor]:
    """Weight three alignment losses by `weight` / 3 and the action losses by 1."""
    return {name: weight / 3 * loss if name.startswith("alignment/") else loss for name, loss in losses.items()}


def test_weights_receive_the_sum_of_projected_gradients():
    """The reference gradients are of one backward pass per loss, over two passes. A single loss is not changed."""
    reset_accelerate_state()
    torch.manual_seed(0)
    policy = RocketForActionPrediction(tiny_config("smolvla"))
    fake = policy.config.fake_batch
    batches = [fake(seed=seed) | {"noise": torch.randn(2, 4, 8), "time": torch.rand(2)} for seed in (1, 2)]
    targets = policy.config.fake_targets()
    rows = []
    for name, factor in {"1-2": 0.1, "2-3": 0.1, "3-4": 0.1, "action": 1.0}.items():
        for batch in batches:
            (factor * loss_terms(policy(**batch, targets=targets).losses)[name] / 2).backward()
        rows.append(torch.cat([torch.zeros_like(weight).flatten() if weight.grad is None else weight.grad.flatten()
                               for weight in policy.parameters()]))  # fmt: skip
        policy.zero_grad()
    projection = GradientProjection(policy, Accelerator(cpu=True))
    for batch in batches:
        projection.backward(weighted(policy(**batch, targets=targets).losses, 0.3), 2)
    projection.write_gradients()
    expected = remove_conflicts(torch.stack(rows)).sum(dim=0)
    assert not torch.allclose(expected, torch.stack(rows).sum(dim=0), rtol=1e-3)  # Some gradients do conflict.
    torch.testing.assert_close(torch.cat([weight.grad.flatten() for weight in policy.parameters()]), expected)

    policy.zero_grad()
    losses = policy(**batches[0], targets=targets).losses
    projection.backward({"action/all": weighted_loss(losses, 0.3), "alignment/1-2": 0.0 * losses["alignment/1-2"]}, 1)
    projection.write_gradients()
    projected = pop_gradients(policy)
    weighted_loss(policy(**batches[0], targets=targets).losses, 0.3).backward()
    for weight in policy.parameters():
        weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
    for one, other in zip(projected, pop_gradients(policy), strict=True):
        torch.testing.assert_close(one, other)


def test_two_ranks_train_the_same_weights_as_one(tiny_run, policies, image_dataset, teacher, tmp_path):
    tiny_run(tmp_path / "alone", **PROJECTION)
    tiny_run(tmp_path / "unprojected", **(PROJECTION | {"optimizer__conflicts": "keep"}))
    arguments = ["--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", image_dataset, "--teacher", teacher]
    words = set_options(**PROJECTION, run__device_batch_size=1)
    assert run_ranks(2, tmp_path / "two", *arguments, *words) == [0, 0], (tmp_path / "ranks.txt").read_text()
    alone = checkpoint_tensors(tmp_path / "alone", 4)
    assert largest_difference(alone, checkpoint_tensors(tmp_path / "two", 4)) < 1e-5
    assert largest_difference(alone, checkpoint_tensors(tmp_path / "unprojected", 4)) > 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"alignment": None}, "this recipe has one"), ({"run__compile": True}, "run.compile=false")],
)
def test_unsupported_settings_are_refused_before_training(changes, message, policies, image_dataset, teacher, tmp_path):
    outcome = run_training(
        "--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", image_dataset, "--teacher", teacher,
        "--out", tmp_path / "run", *set_options(**(PROJECTION | changes)),
    )  # fmt: skip
    assert outcome.code == 2 and len(outcome.stderr.splitlines()) == 1 and message in outcome.stderr
    assert not (tmp_path / "run").exists()
