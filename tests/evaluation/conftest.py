import pytest
import torch

from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.tiny import character_tokenizer, tiny_config, tiny_statistics


def tiny_policy(family="pi0", **changes):
    """Return a policy with random weights and without alignment head, and its processor."""
    torch.manual_seed(0)
    config = tiny_config(family, alignment=None, **changes)
    policy = RocketForActionPrediction(config).eval()
    statistics = {part: dict(values) for part, values in tiny_statistics(config).items()}
    processor = RocketProcessor.for_config(config, character_tokenizer(), statistics)
    return policy, processor


@pytest.fixture(scope="session")
def tiny_pi0():
    return tiny_policy()
