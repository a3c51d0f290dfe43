"""How a feature is stored: as bfloat16, or as bytes with one scale per token.

"projected" stores bytes too, of features that were projected to fewer dimensions before (`projection.py`).
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Storage = Literal["bf16", "int8", "projected"]

STEPS = 127  # of a byte, on either side of zero
SMALLEST_SCALE = 2**-24  # that float16 can hold


def encode(features: Tensor, storage: Storage) -> dict[str, Tensor]:
    """Tokens (..., C) to the tensors that are stored, all with the same leading dimensions."""
    if storage == "bf16":
        return {"features": features.to(torch.bfloat16)}
    features = features.float()
    scales = (features.abs().amax(dim=-1) / STEPS).clamp_min(SMALLEST_SCALE).half()
    codes = (features / scales.float()[..., None]).round().clamp(-STEPS, STEPS).to(torch.int8)
    return {"codes": codes, "scales": scales}


def decode(stored: Mapping[str, Tensor], storage: Storage, dtype: torch.dtype = torch.float32) -> Tensor:
    if storage == "bf16":
        return stored["features"].to(dtype)
    return (stored["codes"].float() * stored["scales"].float()[..., None]).to(dtype)


def layout(storage: Storage, tokens: tuple[int, ...], width: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """The dtype and shape of each tensor that holds tokens of this width; its name sorts as it is stored."""
    if storage == "bf16":
        return {"features": (torch.bfloat16, (*tokens, width))}
    return {"codes": (torch.int8, (*tokens, width)), "scales": (torch.float16, tokens)}


def stored_bytes(storage: Storage, tokens: tuple[int, ...], width: int) -> int:
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in layout(storage, tokens, width).values())
