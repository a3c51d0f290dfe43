"""Models that are made in a blink and random in every weight, so that nothing hides behind a zero."""

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import nn

from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.tiny import TINY_POLICIES, tiny_config


def randomised(config: RocketConfig, seed: int = 0) -> RocketForActionPrediction:
    """A model whose every weight, norms and modulations included, is random and of moderate size."""
    torch.manual_seed(seed)
    model = RocketForActionPrediction(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.25 if parameter.dim() > 1 else 0.1)
    return model.eval()


@pytest.fixture(params=TINY_POLICIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def config(family) -> RocketConfig:
    return tiny_config(family)


@pytest.fixture
def model(config) -> RocketForActionPrediction:
    return randomised(config)


def hooked_streams(language: nn.Module, run: Callable[[], object]) -> dict[int, torch.Tensor]:
    """The residual stream after each block of one of lerobot's language models, by hooks, while `run` runs it.

    The input of layer i's first norm is the stream after block i, that of the final norm the stream after the last.
    """
    norms = [*(layer.input_layernorm for layer in language.layers), language.norm]
    seen: dict[int, torch.Tensor] = {}
    with contextlib.ExitStack() as stack:
        for index, norm in enumerate(norms):
            hook = norm.register_forward_pre_hook(lambda _, args, index=index: seen.__setitem__(index, args[0]))
            stack.callback(hook.remove)
        run()
    return seen
