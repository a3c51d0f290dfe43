"""QLoRA (arXiv 2305.14314): frozen linear layers under LoRA in 4 bits (NF4). Needs bitsandbytes."""

import importlib.util
from types import ModuleType
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rocket_hf.errors import UserError


def import_bitsandbytes() -> ModuleType:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("run.quantize needs bitsandbytes: `pip install bitsandbytes`, or set run.quantize=false")
    return importlib.import_module("bitsandbytes")


def quantize_frozen(model: nn.Module, compute_dtype: torch.dtype) -> None:
    """Replace the frozen linear layers under LoRA in place. bitsandbytes quantizes them when the model is moved to its
    device."""
    library = import_bitsandbytes()
    for module in list(model.modules()):
        if isinstance(module, LoraLayer) and isinstance(module.base_layer, nn.Linear):
            old = module.base_layer
            new = library.nn.Linear4bit(
                old.in_features, old.out_features, old.bias is not None, compute_dtype, quant_type="nf4", device="meta"
            )
            new.weight = library.nn.Params4bit(old.weight.data, requires_grad=False, quant_type="nf4")
            new.bias = old.bias
            module.base_layer = new


def dequantized_weight(layer: nn.Module) -> Tensor:
    """Return the weight of a layer under LoRA, dequantized if it is quantized."""
    weight: Any = layer.get_parameter("weight")
    if weight.is_floating_point():
        return weight
    return import_bitsandbytes().functional.dequantize_4bit(weight.data, weight.quant_state)
