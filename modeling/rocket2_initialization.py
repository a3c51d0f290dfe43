"""Initial weights of ROCKET-2, equal to those of torch and of the public code."""

from torch import nn
from transformers import initialization as init

from .rocket2_actions import ActionChoice
from .rocket2_temporal import CURVE_SCALE, DistanceCurves, FanInLinear


def initialize_module(module: nn.Module) -> bool:
    """Initialize a module; return False if it has none of the classes below and needs transformers' initialization.

    The biases are zero. transformers' own values for linear layers are too small for narrow models.
    """
    if isinstance(module, DistanceCurves):
        init.normal_(module.weight, std=CURVE_SCALE)
        return True
    if isinstance(module, FanInLinear):
        init.copy_(module.weight, module.initial_weight())
    elif isinstance(module, ActionChoice):
        init.orthogonal_(module.weight, gain=ActionChoice.GAIN)
    elif isinstance(module, nn.Linear | nn.Conv2d):
        init.kaiming_uniform_(module.weight, a=5**0.5)
    else:
        return False
    if module.bias is not None:
        init.zeros_(module.bias)
    return True
