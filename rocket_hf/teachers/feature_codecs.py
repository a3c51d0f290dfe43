"""Codecs of stored features: bfloat16, or int8 with one scale per token.

The storage "projected" also stores int8, after a projection to fewer dimensions (`projection.py`).
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Storage = Literal["bf16", "int8", "projected"]

LEVELS = 127  # quantization levels of an int8 on either side of zero
SMALLEST_SCALE = 2**-24  # smallest positive float16


def encode(features: Tensor, storage: Storage) -> dict[str, Tensor]:
    """Encode tokens (..., C) as named tensors, all with the same leading dimensions."""
    if storage == "bf16":
        return {"features": features.to(torch.bfloat16)}
    features = features.float()
    scales = (features.abs().amax(dim=-1) / LEVELS).clamp_min(SMALLEST_SCALE).half()
    codes = (features / scales.float()[..., None]).round().clamp(-LEVELS, LEVELS).to(torch.int8)
    return {"codes": codes, "scales": scales}


def decode(stored: Mapping[str, Tensor], storage: Storage, dtype: torch.dtype = torch.float32) -> Tensor:
    if storage == "bf16":
        return stored["features"].to(dtype)
    return (stored["codes"].float() * stored["scales"].float()[..., None]).to(dtype)


def layout(storage: Storage, tokens: tuple[int, ...], width: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return the dtype and shape of each tensor that stores tokens of this width, in the order of their names."""
    if storage == "bf16":
        return {"features": (torch.bfloat16, (*tokens, width))}
    return {"codes": (torch.int8, (*tokens, width)), "scales": (torch.float16, tokens)}


def stored_bytes(storage: Storage, tokens: tuple[int, ...], width: int) -> int:
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in layout(storage, tokens, width).values())
