"""Models that are made in a blink and random in every weight, so that nothing hides behind a zero."""

import pytest
import torch

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
