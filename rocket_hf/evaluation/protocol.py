"""Conversions between an environment and a policy, as the policy was trained: images, states and gripper convention.

OpenVLA's policies were trained on images that had been compressed as JPEG and cropped at random. At test time they
receive the same JPEG round trip and a center crop. Their gripper action is 1 for open, LIBERO's is -1.
"""

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

OPENVLA_SIZE = 224
CROPPED_AREA = 0.9
JPEG_QUALITY = 95  # default of TensorFlow, which compressed the training images


@dataclass(frozen=True)
class EvaluationProtocol:
    """Conversions of one policy family. By default images, states and actions are passed unchanged."""

    name: str = "plain"
    openvla: bool = False

    def convert_image(self, image: np.ndarray) -> np.ndarray:
        """Convert a simulator image, (height, width, 3) uint8, to the input of the processor."""
        return openvla_image(image) if self.openvla else image

    def convert_state(self, normalized: Tensor) -> Tensor:
        """Convert normalized states. OpenVLA clips them to -1..1, also where they exceed its quantiles."""
        return normalized.clamp(-1, 1) if self.openvla else normalized

    def convert_actions(self, actions: Tensor) -> Tensor:
        """Convert (..., action_dim) in robot units to actions of the environment."""
        return libero_gripper(actions) if self.openvla else actions


PLAIN = EvaluationProtocol()
OPENVLA = EvaluationProtocol("openvla", openvla=True)
PROTOCOLS = {protocol.name: protocol for protocol in (PLAIN, OPENVLA)}


def openvla_image(image: np.ndarray) -> np.ndarray:
    """Compress as JPEG, resize to 224 x 224 (Lanczos), crop the central 90 % of the area, resize to 224 x 224 again."""
    jpeg = io.BytesIO()
    Image.fromarray(image).save(jpeg, "JPEG", quality=JPEG_QUALITY)
    resized = Image.open(jpeg).convert("RGB").resize((OPENVLA_SIZE, OPENVLA_SIZE), Image.Resampling.LANCZOS)
    return center_crop(np.asarray(resized))


def center_crop(image: np.ndarray) -> np.ndarray:
    """Crop the center of a square image and resize it bilinearly to the size of the image.

    The centers of the outermost pixels lie on the edges of the crop, as in TensorFlow's crop_and_resize.
    """
    size = image.shape[0]
    side = CROPPED_AREA**0.5
    span = torch.linspace(-side, side, size)  # grid_sample's -1..1 spans the centers of the first and last pixel
    grid = torch.stack(torch.meshgrid(span, span, indexing="xy"), dim=-1)[None]  # (1, H, W, 2)
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    cropped = torch.nn.functional.grid_sample(pixels, grid, mode="bilinear", align_corners=True)
    return cropped[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()


def libero_gripper(actions: Tensor) -> Tensor:
    """Convert the last dimension from 0 (closed) .. 1 (open) to -1 (open) or 1 (closed)."""
    gripper = -torch.sign(2 * actions[..., -1:] - 1)
    return torch.cat([actions[..., :-1], gripper], dim=-1)
