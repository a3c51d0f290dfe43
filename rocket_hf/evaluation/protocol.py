"""What lies between a policy and an environment: how it was fed in training, and which way its gripper counts.

OpenVLA's policies were trained on pictures that had been stored as JPEG and cropped at random; at test time they get
the same round trip and the center of the picture. Their gripper is 1 when open, LIBERO's -1.
"""

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

OPENVLA_SIZE = 224
CROPPED_AREA = 0.9
JPEG_QUALITY = 95  # TensorFlow's default, which stored them


@dataclass(frozen=True)
class Protocol:
    """By default the pictures, states and actions as they are."""

    name: str = "plain"
    openvla: bool = False

    def picture(self, image: np.ndarray) -> np.ndarray:
        """(height, width, 3) uint8, as the simulator made it, to what the processor gets."""
        return openvla_picture(image) if self.openvla else image

    def state(self, normalized: Tensor) -> Tensor:
        """OpenVLA's states lie in -1..1, whatever lies beyond its quantiles."""
        return normalized.clamp(-1, 1) if self.openvla else normalized

    def actions(self, actions: Tensor) -> Tensor:
        """(..., action_dim) in robot units, to the environment's."""
        return libero_gripper(actions) if self.openvla else actions


PLAIN = Protocol()
OPENVLA = Protocol("openvla", openvla=True)
PROTOCOLS = {protocol.name: protocol for protocol in (PLAIN, OPENVLA)}


def openvla_picture(image: np.ndarray) -> np.ndarray:
    """Through JPEG, to 224 x 224 by Lanczos, and the center of nine tenths of its area enlarged to that again."""
    stored = io.BytesIO()
    Image.fromarray(image).save(stored, "JPEG", quality=JPEG_QUALITY)
    picture = Image.open(stored).convert("RGB").resize((OPENVLA_SIZE, OPENVLA_SIZE), Image.Resampling.LANCZOS)
    return center_crop(np.asarray(picture))


def center_crop(image: np.ndarray) -> np.ndarray:
    """Bilinear, the outermost pixels' centers on the edges of the crop, as TensorFlow's crop_and_resize has them."""
    size = image.shape[0]
    side = CROPPED_AREA**0.5
    span = torch.linspace(-side, side, size)  # of grid_sample's -1..1 from the first pixel's center to the last's
    grid = torch.stack(torch.meshgrid(span, span, indexing="xy"), dim=-1)[None]  # (1, H, W, 2)
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    cropped = torch.nn.functional.grid_sample(pixels, grid, mode="bilinear", align_corners=True)
    return cropped[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()


def libero_gripper(actions: Tensor) -> Tensor:
    """The last dimension from 0 (closed) .. 1 (open) to -1 (open) or 1 (closed)."""
    gripper = -torch.sign(2 * actions[..., -1:] - 1)
    return torch.cat([actions[..., :-1], gripper], dim=-1)
