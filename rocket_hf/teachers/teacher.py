"""Interface of teachers: frozen vision models whose features a policy is aligned with. Teachers exist only in training.

Shapes: B batch, V cameras (views), P patches of one camera (rows x columns, row by row), C channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rocket_hf.errors import UserError

Grid = tuple[int, int]  # rows, columns
Resolution = str | int  # "teacher", "camera" or a side in pixels


@dataclass(frozen=True)
class TeacherCard:
    """Facts about a teacher: its name, weights, license, sizes and pixel statistics."""

    name: str  # Hub id, or the folder's name
    weights: str  # hash of the weights, part of the key of a feature cache
    license: str  # license of the weights as the Hub spells it; "unknown" if no file states one
    patch_size: int
    depth: int  # number of blocks; layers are 1..depth, or -1..-depth counted from the end
    width: int  # number of channels C
    image_size: int  # side in pixels of the images that the teacher was trained on
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def resolve_layer(self, layer: int) -> int:
        """Return the number of a layer in 1..depth; negative layers count from the end."""
        number = layer + self.depth + 1 if layer < 0 else layer
        if not 1 <= number <= self.depth:
            raise UserError(
                f"{self.name} has no layer {layer}: "
                f"its {self.depth} blocks are layers 1..{self.depth}, or -{self.depth}..-1"
            )
        return number


@dataclass
class Features:
    """Feature maps of some teacher layers, and their grid of patches."""

    maps: dict[int, Tensor]  # (B, V, P, C) for each requested layer; negative numbers are kept as keys
    grid: Grid


class Teacher(ABC):
    """A frozen vision model. It holds its module but is none, so that it never enters a policy's modules or checkpoint.

    `resolution` selects the size of the images that the teacher receives:

    - "teacher": the longer side gets the teacher's own `image_size`; the most detailed features.
    - "camera": the camera's own size, rounded to whole patches. Several times cheaper for small cameras (224 pixels are
      16 x 16 patches, 518 are 37 x 37), and as much detail as the policy's own grid can hold.
    - a number: length of the longer side in pixels.
    """

    card: TeacherCard
    device: torch.device
    dtype: torch.dtype

    @abstractmethod
    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size, in whole patches, that a camera image of this size is resized to. Keeps the aspect ratio."""

    @abstractmethod
    def features(self, images: Tensor, layers: Sequence[int], camera_mask: Tensor | None = None) -> Features:
        """Return the features of images (B, V, 3, H, W), uint8 or in [0, 1]. A sample's images are frames of one scene.

        A missing camera, False in `camera_mask` (B, V), is not part of its scene and gets features of zeros. Only the
        blocks up to the deepest requested layer run, and only the requested layers are kept in memory.
        """

    def grid(self, height: int, width: int) -> Grid:
        """Return the patch grid of a camera of this size."""
        rows, columns = (side // self.card.patch_size for side in self.input_size(height, width))
        return rows, columns
