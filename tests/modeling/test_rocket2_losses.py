"""Tests of ROCKET-2's losses, of dropping its auxiliary heads, and of wrong inputs."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.rocket2_auxiliary import auxiliary_targets

from .rocket2_tiny import FACTORED, STEPS, TINY, goal_at, random_rocket2


@pytest.fixture
def model() -> Rocket2ForActionPrediction:
    return random_rocket2()


@pytest.fixture
def batch(model):
    return model.config.fake_batch(batch_size=2, steps=STEPS, goals=3)


# Losses


def test_losses_equal_those_of_torch_on_existing_steps(model, batch):
    with torch.no_grad():
        output = model(**batch)
    exists, visible = ~batch["is_pad"], batch["visibility"] & ~batch["is_pad"]
    auxiliary, losses = output.auxiliary, output.losses
    expected = {name: [] for name in losses}
    for row in range(2):
        steps, visible_steps = exists[row], visible[row]
        for column, (name, value) in enumerate(output.logits.items()):
            chosen = batch["actions"][row, steps, column]
            expected[f"action/{name}"].append(F.cross_entropy(value[row, steps], chosen, reduction="sum"))
        target = batch["visibility"][row, steps].float()
        expected["auxiliary/visibility"].append(
            F.binary_cross_entropy_with_logits(auxiliary["visibility"][row, steps, 0], target)
        )
        for name in ("point", "box"):
            expected[f"auxiliary/{name}"].append(
                F.l1_loss(auxiliary[name][row, visible_steps], batch[name][row, visible_steps])
            )
    assert visible.any(dim=1).all()
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(
            loss, torch.stack(expected[name]).mean(), msg=lambda text, name=name: f"{name}: {text}"
        )


def test_empty_masks_have_no_position_loss_and_finite_gradients(model, batch):
    empty = torch.zeros(2, STEPS, 8, 12)
    batch |= auxiliary_targets(empty)
    assert (batch["point"] == -1).all() and (batch["box"] == -1).all() and not batch["visibility"].any()
    batch["goal_masks"] = torch.zeros_like(batch["goal_masks"])
    losses = model.train()(**batch).losses
    sum(losses.values()).backward()
    assert losses["auxiliary/point"] == 0 == losses["auxiliary/box"] and losses["auxiliary/visibility"] > 0
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)
    assert not model.auxiliary["point"].weight.grad.any()


def test_auxiliary_targets_are_fractions_of_image():
    masks = torch.zeros(2, 4, 8)
    masks[0, 1:3, 4:8] = 1
    targets = auxiliary_targets(masks)
    assert targets["visibility"].tolist() == [True, False]
    assert targets["point"].tolist() == [[0.5, 0.75], [-1, -1]]  # y, x
    assert targets["box"].tolist() == [[0.5, 0.25, 1.0, 0.75], [-1, -1, -1, -1]]  # x0, y0, x1, y1


def test_images_without_actions_have_only_auxiliary_losses(model):
    batch = model.config.fake_batch(steps=1)
    del batch["actions"]
    assert set(model.train()(**batch).losses) == {"auxiliary/visibility", "auxiliary/point", "auxiliary/box"}


# Heads that exist only in training


@pytest.mark.parametrize("keep", [(), ("visibility", "point")])
def test_dropping_auxiliary_heads_does_not_change_actions(model, batch, keep):
    policy = model.for_inference(keep)
    assert list(policy.config.auxiliary_heads) == list(keep) == list(policy.auxiliary)
    shared = zip(policy.views.parameters(), model.views.parameters(), strict=True)
    assert all(weight.data_ptr() == original.data_ptr() for weight, original in shared)
    actions = []
    for variant in (model, policy):
        state, draw, chosen = variant.initial_state(2, guidance=1.5), torch.Generator().manual_seed(0), []
        for step in range(STEPS):
            action, state = variant.step(batch["images"][:, step], goal_at(batch, step), state, generator=draw)
            chosen.append(action)
        actions.append(torch.stack(chosen))
        assert set(state.seen) == set(variant.config.auxiliary_heads)
    assert torch.equal(*actions)
    with torch.no_grad():
        full, dropped = model(**batch).logits, policy(**batch).logits
    assert all(torch.equal(full[name], dropped[name]) for name in full)


def test_missing_auxiliary_head_cannot_be_kept(model):
    with pytest.raises(ValueError, match="no auxiliary head 'point' to keep"):
        model.for_inference().for_inference(["point"])


def test_gradient_checkpointing_changes_no_gradient(batch):
    gradients = []
    for checkpointing in (False, True):
        model = random_rocket2(spatial_dropout=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        sum(model(generator=torch.Generator().manual_seed(0), **batch).losses.values()).backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad})
    torch.testing.assert_close(*gradients)


# Wrong inputs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": (30, 48)}, "multiples of patch_size=16"),
        ({"heads": 3}, "must be a multiple of heads=3"),
        ({"action_factors": {"turn": 1}}, "each with at least two choices"),
        ({"action_factors": {"turn.left": 2}}, "must not contain a dot"),
        ({"rest_action": [0, 5]}, "one choice of each"),
        (
            {"auxiliary_heads": ["center"]},
            "auxiliary_heads has the unknown head 'center'; known: visibility, point, box",
        ),
        ({"previous_action_dropout": 2.0}, "must be a probability"),
        ({"widht": 32}, "did you mean 'width'"),
    ],
)
def test_contradictory_configurations_are_rejected(change, message):
    with pytest.raises((UserError, StrictDataclassError)) as caught:
        Rocket2Config(**(TINY | FACTORED | change))
    assert message in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, STEPS, 3, 32, 32)}, r"batch\['images'\] must be \(2, 8, 3, 32, 48\)"),
        ({"actions": torch.zeros(2, STEPS, 3)}, r"batch\['actions'\] must be \(2, 8, 2\)"),
        ({"image": torch.zeros(1)}, "did you mean 'images'"),
        ({"visibility": None}, "the batch lacks 'visibility'"),
    ],
)
def test_wrong_batches_are_rejected(model, batch, change, message):
    inputs = {key: value for key, value in (batch | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        model.train()(**inputs)


def test_wrong_step_inputs_are_rejected(model, batch):
    state, image = model.initial_state(2), batch["images"][:, 0]
    with pytest.raises(ValueError, match=r"images must be \(2, 3, 32, 48\)"):
        model.step(image[:1], None, state)
    with pytest.raises(ValueError, match=r"goal.images must be \(1, 3, 32, 48\)"):
        model.step(image, replace(goal_at(batch, 0), environments=torch.tensor([True, False])), state)
    with pytest.raises(ValueError, match=r"goal.interactions must lie in -1..8, got \[9, 9\]"):
        model.step(image, replace(goal_at(batch, 0), interactions=torch.tensor([9, 9])), state)
    with pytest.raises(ValueError, match="guidance must be 0"):
        model.initial_state(1, guidance=-1)
