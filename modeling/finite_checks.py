"""Checks that inputs and actions are finite: a robot would execute whatever NaN or infinity become in a policy."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import UserError

PREDICTED = "predicted actions"
IMAGE_TOLERANCE = 1e-3  # by which values of float images may exceed 1


def finite_flags(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return whether each floating-point tensor is finite, as tensors on its device; nothing waits for the device.

    The smallest or largest value is NaN or infinite if any value is. They take one pass and no memory, which makes this
    ten times faster than `isfinite` on all values.
    """
    return {
        name: torch.stack(value.detach().aminmax()).isfinite().all()
        for name, value in values.items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel()
    }


def raise_if_not_finite(flags: Mapping[str, Tensor]) -> None:
    """Raise `UserError` that names the first value that is not finite. All flags are fetched at once.

    In a compiled graph this does nothing, because a graph cannot depend on values.
    """
    if not flags or torch.compiler.is_compiling():
        return
    for name, is_finite in zip(flags, torch.stack(list(flags.values())).tolist(), strict=True):
        if not is_finite and name == PREDICTED:
            raise UserError(
                "the predicted actions are not finite, so none are returned: the policy's weights are damaged, or too "
                "large for its dtype; download the policy again, or load it in bfloat16 or float32"
            )
        if not is_finite:
            raise UserError(
                f"the input {name!r} is not finite (NaN or infinity): check the robot's sensors and the processor's "
                "statistics"
            )


def check_image_range(images: Mapping[str, Tensor]) -> None:
    """Raise `UserError` if a float image, given by camera, is not finite or not in [0, 1]."""
    if not images:
        return
    extremes = [torch.stack(image.aminmax()).float() for image in images.values()]
    for name, (low, high) in zip(images, torch.stack(extremes).tolist(), strict=True):
        if low != low or high != high:
            raise UserError(f"camera {name!r}: the image is not finite (it contains NaN): check the camera")
        if not 0 <= low <= high <= 1 + IMAGE_TOLERANCE:
            raise UserError(
                f"camera {name!r}: a float image must lie in [0, 1], got {low:g} .. {high:g}: scale it, or pass uint8"
            )
