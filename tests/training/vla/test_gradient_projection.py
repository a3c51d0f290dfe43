"""PCGrad: what goes against another loss is gone, nothing else is, and ranks train what one process trains."""

import pytest
import torch
from accelerate import Accelerator

from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.policy_interface import weighted_loss
from rocket_hf.tiny import tiny_config
from rocket_hf.training.vla.gradient_projection import Projection, remove_conflicts
from rocket_hf.training.vla.loss_gradients import named_losses

from ..conftest import checkpoint, forget_processes, largest_difference, run_ranks, run_training, settings

pytestmark = pytest.mark.needs_lerobot

PROJECT = {"optimizer__conflicts": "project", "run__steps": 4, "run__save_every": 4}


def test_two_gradients_by_hand():
    """(1, 0) and (-1, 1) lose what they have along each other; orthogonal and agreeing ones lose nothing."""
    assert remove_conflicts(torch.tensor([[1.0, 0], [-1, 1]])).tolist() == [[0.5, 0.5], [0, 1]]
    kept = torch.tensor([[1.0, 0, 0], [2, 1, 0], [0, 0, 3], [0, 0, 0]])
    assert torch.equal(remove_conflicts(kept), kept)


def test_a_projected_gradient_goes_against_none_of_two():
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        gradients = torch.randn(2, 3, generator=draw)
        projected = remove_conflicts(gradients)
        assert (projected @ gradients.T).min() > -1e-6
        assert (projected.sum(dim=0) @ gradients.T).min() > -1e-6


def gradients_of(policy) -> list[torch.Tensor]:
    found = [weight.grad.clone() for weight in policy.parameters() if weight.grad is not None]
    policy.zero_grad()
    return found


def test_what_is_left_in_the_weights_is_the_sum_of_projected_gradients():
    """Of each loss's own backward pass, over two passes; and without conflicts the gradient of the plain sum."""
    forget_processes()
    torch.manual_seed(0)
    policy = RocketForActionPrediction(tiny_config("smolvla"))
    fake = policy.config.fake_batch
    batches = [fake(seed=seed) | {"noise": torch.randn(2, 4, 8), "time": torch.rand(2)} for seed in (1, 2)]
    targets = policy.config.fake_targets()
    rows = []
    for name, factor in {"1-2": 0.1, "2-3": 0.1, "3-4": 0.1, "action": 1.0}.items():
        for batch in batches:
            (factor * named_losses(policy(**batch, targets=targets).losses)[name] / 2).backward()
        rows.append(torch.cat([torch.zeros_like(weight).flatten() if weight.grad is None else weight.grad.flatten()
                               for weight in policy.parameters()]))  # fmt: skip
        policy.zero_grad()
    projection = Projection(policy, Accelerator(cpu=True))
    for batch in batches:
        projection.add(policy(**batch, targets=targets).losses, 0.3, 2)
    projection.settle()
    wanted = remove_conflicts(torch.stack(rows)).sum(dim=0)
    assert not torch.allclose(wanted, torch.stack(rows).sum(dim=0), rtol=1e-3)  # some do conflict here
    torch.testing.assert_close(torch.cat([weight.grad.flatten() for weight in policy.parameters()]), wanted)

    policy.zero_grad()
    losses = policy(**batches[0], targets=targets).losses
    projection.add({"action/all": weighted_loss(losses, 0.3), "alignment/1-2": losses["alignment/1-2"]}, 0.0, 1)
    projection.settle()
    alone = gradients_of(policy)
    weighted_loss(policy(**batches[0], targets=targets).losses, 0.3).backward()
    for weight in policy.parameters():
        weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
    for one, other in zip(alone, gradients_of(policy), strict=True):
        torch.testing.assert_close(one, other)


def test_two_ranks_project_what_one_does(tiny_run, policies, stored, teacher, tmp_path):
    tiny_run(tmp_path / "alone", **PROJECT)
    tiny_run(tmp_path / "kept", **(PROJECT | {"optimizer__conflicts": "keep"}))
    given = ["--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", stored, "--teacher", teacher]
    words = settings(**PROJECT, run__device_batch_size=1)
    assert run_ranks(2, tmp_path / "two", *given, *words) == [0, 0], (tmp_path / "ranks.txt").read_text()
    alone = checkpoint(tmp_path / "alone", 4)
    assert largest_difference(alone, checkpoint(tmp_path / "two", 4)) < 1e-5
    assert largest_difference(alone, checkpoint(tmp_path / "kept", 4)) > 1e-4


@pytest.mark.parametrize(
    ("changes", "said"), [({"alignment": None}, "this recipe has one"), ({"run__compile": True}, "run.compile=false")]
)
def test_what_cannot_be_projected_is_said_before_the_run(changes, said, policies, stored, teacher, tmp_path):
    outcome = run_training(
        "--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", stored, "--teacher", teacher,
        "--out", tmp_path / "run", *settings(**(PROJECT | changes)),
    )  # fmt: skip
    assert outcome.code == 2 and len(outcome.stderr.splitlines()) == 1 and said in outcome.stderr
    assert not (tmp_path / "run").exists()
