"""Fixtures with tiny models whose weights are all random, so that no test passes because of zero weights."""

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import nn

from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.tiny import TINY_POLICIES, tiny_config


def random_model(config: RocketConfig, seed: int = 0) -> RocketForActionPrediction:
    """Create a model whose weights, including those of norms, are random and of moderate size."""
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
    return random_model(config)


def hooked_streams(language: nn.Module, run: Callable[[], object]) -> dict[int, torch.Tensor]:
    """Record the residual stream after each block of a lerobot language model with hooks while `run` runs it.

    The input of the first norm of layer i is the stream after block i, that of the final norm the stream after the
    last.
    """
    norms = [*(layer.input_layernorm for layer in language.layers), language.norm]
    streams: dict[int, torch.Tensor] = {}
    with contextlib.ExitStack() as stack:
        for index, norm in enumerate(norms):
            hook = norm.register_forward_pre_hook(lambda _, args, index=index: streams.__setitem__(index, args[0]))
            stack.callback(hook.remove)
        run()
    return streams
