"""Oracle teacher: the world coordinates that each patch shows, as a Fourier code. It has no weights.

It reads world coordinates in place of colors, which only recordings with depth have, so its features are stored in a
feature cache (`rocket-hf cache build --teacher oracle`) and never computed during training. It bounds what alignment
with any 3D vision model can give: its targets are metric and without errors.

The code of a point has the sine and the cosine of 2 pi x / wavelength for each of the three coordinates and each of
eight wavelengths, in geometric progression from 4 m to 0.25 m. The surroundings of a table-top robot fit into the
longest one; the shortest one makes the cosine similarity of two codes 0.95 at a distance of 5 cm along one axis, and
0.76 at 15 cm. A patch has the mean of its pixels' codes.
"""

from collections.abc import Sequence
from hashlib import sha256

import torch
import torch.nn.functional as F
from torch import Tensor

from .teacher import Features, Teacher, TeacherCard

ORACLE, ORACLE_LICENSE = "oracle", "apache-2.0"  # it contains nothing but this file
LONGEST, SHORTEST, FREQUENCIES = 4.0, 0.25, 8
WAVELENGTHS = tuple(  # in meters
    LONGEST * (SHORTEST / LONGEST) ** (number / (FREQUENCIES - 1)) for number in range(FREQUENCIES)
)
PATCH_SIZE = 8  # pixels; finer than the policies' patches, onto whose grid the features are averaged
CHANNELS = 3 * FREQUENCIES * 2


class OracleTeacher(Teacher):
    """Teacher with one layer, whose images are maps of world coordinates in meters."""

    def __init__(self, device: torch.device | str = "cpu"):
        self.device, self.dtype = torch.device(device), torch.float32
        self.card = TeacherCard(
            name=ORACLE,
            weights=sha256(repr((WAVELENGTHS, PATCH_SIZE)).encode()).hexdigest(),
            license=ORACLE_LICENSE,
            patch_size=PATCH_SIZE,
            depth=1,
            width=CHANNELS,
            image_size=PATCH_SIZE,  # any size: the code of a point does not depend on it
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
        )

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the camera's own size: coordinates are not resized, because that would invent points at edges."""
        return height, width

    @torch.no_grad()
    def features(self, images: Tensor, layers: Sequence[int], camera_mask: Tensor | None = None) -> Features:
        """Return the codes of world coordinates (B, V, 3, H, W). A camera missing in `camera_mask` gets zeros."""
        grid = self.grid(*images.shape[-2:])
        codes = F.adaptive_avg_pool2d(fourier_code(images.to(self.device)).flatten(0, 1), grid)
        tokens = codes.unflatten(0, images.shape[:2]).flatten(-2).mT  # (B, V, P, C)
        if camera_mask is not None:
            tokens = tokens * camera_mask.to(tokens)[..., None, None]
        return Features({layer: tokens for layer in layers if self.card.resolve_layer(layer)}, grid)


def fourier_code(points: Tensor) -> Tensor:
    """Return the code (..., CHANNELS, H, W) of points (..., 3, H, W) in meters.

    The channels are ordered by coordinate, then wavelength from long to short, then sine and cosine.
    """
    wavelengths = torch.tensor(WAVELENGTHS, device=points.device)[:, None, None]
    angles = 2 * torch.pi * points.float()[..., None, :, :] / wavelengths  # (..., 3, FREQUENCIES, H, W)
    return torch.stack([angles.sin(), angles.cos()], dim=-3).flatten(-5, -3)
