"""Inputs and weights that are not finite never become actions, in any backbone."""

import pytest
import torch

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.finite_checks import finite_flags, raise_if_not_finite
from rocket_hf.tiny import tiny_config

from .conftest import random_model
from .rocket2_tiny import random_rocket2

VALUES = (torch.nan, torch.inf, -torch.inf)


def observation(config: RocketConfig) -> dict[str, torch.Tensor]:
    keys = ("images", "camera_mask", "input_ids", "attention_mask", "state")
    batch = {key: config.fake_batch(batch_size=2)[key] for key in keys}
    batch["images"] = batch["images"] / 255
    if config.policy_config.draws_noise:
        shape = (2, config.chunk_size, config.policy_config.max_action_dim)
        batch["noise"] = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return batch


@pytest.mark.parametrize("value", VALUES)
def test_policy_rejects_each_input_that_is_not_finite(family, value):
    model = random_model(tiny_config(family, alignment=None))
    batch = observation(model.config)
    assert model.predict_action_chunk(**batch).isfinite().all()
    for name in {"images", "state", "noise"} & batch.keys():
        damaged = batch | {name: batch[name].clone()}
        damaged[name].view(-1)[-1] = value
        with pytest.raises(UserError, match=f"the input '{name}' is not finite"):
            model.predict_action_chunk(**damaged)


@pytest.mark.parametrize("training", [False, True])
def test_loss_rejects_actions_that_are_not_finite(family, training):
    model = random_model(tiny_config(family, alignment=None)).train(training)
    batch = model.config.fake_batch(batch_size=2)
    batch["actions"][1, 0, 2] = torch.nan
    with pytest.raises(UserError, match="the input 'actions' is not finite"):
        model(**batch)


@pytest.mark.parametrize("value", VALUES)
def test_policy_with_damaged_weights_returns_no_actions(family, value):
    """Without the check, OpenVLA would return the plausible actions of the most likely token of NaN."""
    model = random_model(tiny_config(family, alignment=None))
    with torch.no_grad():
        model.policy.layers[1].get_submodule(largest_linear(model.policy.layers[1])).weight.fill_(value)
    with pytest.raises(UserError, match="the predicted actions are not finite"):
        model.predict_action_chunk(**observation(model.config))


def largest_linear(layer: torch.nn.Module) -> str:
    linears = {name: module for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)}
    return max(linears, key=lambda name: linears[name].weight.numel())


@pytest.mark.parametrize("value", VALUES)
def test_rocket2_rejects_inputs_and_weights_that_are_not_finite(value):
    model = random_rocket2().eval()
    images = torch.rand(1, 3, *model.config.image_size)
    state = model.initial_state()
    model.step(images, None, state)
    with pytest.raises(UserError, match="the input 'images' is not finite"):
        model.step(torch.full_like(images, value), None, state)
    with torch.no_grad():
        next(model.action_heads.parameters()).fill_(value)
    with pytest.raises(UserError, match="the predicted actions are not finite"):
        model.step(images, None, state)


def test_check_fetches_all_flags_at_once_and_ignores_integers():
    flags = finite_flags({"images": torch.zeros(2, dtype=torch.uint8), "state": torch.ones(2), "task": "open"})
    assert flags.keys() == {"state"} and isinstance(flags["state"], torch.Tensor)
    raise_if_not_finite(flags)
    raise_if_not_finite({})
