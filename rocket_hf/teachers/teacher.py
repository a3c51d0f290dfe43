"""What a teacher is: a frozen vision model whose features a policy is aligned with. It exists only in training.

Shapes: B batch, V cameras (views), P patches of one camera (rows x columns, row by row), C channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Grid = tuple[int, int]  # rows, columns
Resolution = str | int  # "teacher", "camera" or a side in pixels


@dataclass(frozen=True)
class TeacherCard:
    """What a teacher says of itself."""

    name: str  # Hub id, or the folder's name
    weights: str  # a hash of its weights, which a feature cache is keyed by
    license: str  # of the weights, as the Hub writes it; "unknown" where nothing says it
    patch_size: int
    depth: int  # layers are 1..depth, or -1..-depth from the end
    width: int  # C
    image_size: int  # the side, in pixels, that it was trained at
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass
class Features:
    maps: dict[int, Tensor]  # by layer as it was asked for, negative ones too: (B, V, P, C)
    grid: Grid


class Teacher(ABC):
    """Holds its module but is none, so that it never gets into a policy's module tree or its checkpoints.

    `resolution` says at which size it sees a camera. "teacher": its own `image_size` for the longer side, the most
    detailed. "camera": the camera's own size rounded to whole patches, several times cheaper for small cameras
    (224 pixels are 16 x 16 patches, 518 are 37 x 37), and all that a policy's own grid takes up. A number: that side.
    """

    card: TeacherCard
    device: torch.device
    dtype: torch.dtype

    @abstractmethod
    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The size, in whole patches, at which it sees a camera of this size. The aspect ratio is kept."""

    @abstractmethod
    def features(self, images: Tensor, layers: Sequence[int], camera_mask: Tensor | None = None) -> Features:
        """Of pictures (B, V, 3, H, W), bytes or in [0, 1]: those of a sample are frames of one scene.

        A camera that is missing, (B, V) False in `camera_mask`, is no frame of its scene and has features of zeros.
        Runs only the blocks up to the deepest layer asked for, and keeps only the layers asked for.
        """

    def grid(self, height: int, width: int) -> Grid:
        """The patches of a camera of this size."""
        rows, columns = (side // self.card.patch_size for side in self.input_size(height, width))
        return rows, columns
