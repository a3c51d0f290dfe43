"""What a small VGGT predicts while it is trained: the depth of every pixel, and where every camera stands.

Both heads read all layers, so that each learns geometry: those are the layers that policies will be aligned with.
Shapes: B scenes, S frames, P patches, C channels of a layer.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rocket_hf.errors import UserError

from ..vggt import Block, VggtAggregator, VggtConfig

CAMERA_NUMBERS = 8  # translation in meters, quaternion, angle of view in radians
DEPTH_CHANNELS = 32
STEPS = 4  # pixels of a side of a cell of the depth head's grid


@dataclass
class Geometry:
    log_depth: Tensor  # (B, S, H, W), of meters along the optical axis
    translations: Tensor  # (B, S, 3), of the frame's camera as the scene's first camera sees it
    quaternions: Tensor  # (B, S, 4), of unit length
    angles_of_view: Tensor  # (B, S)


class LayerFusion(nn.Module):
    """All layers of a patch to one vector: each normalized, projected and summed."""

    def __init__(self, layers: int, width: int, fused: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.projections = nn.ModuleList(nn.Linear(width, fused) for _ in range(layers))

    def forward(self, maps: list[Tensor]) -> Tensor:
        parts = [project(norm(layer)) for layer, norm, project in zip(maps, self.norms, self.projections, strict=True)]
        return F.gelu(torch.stack(parts).sum(dim=0))


class DepthHead(nn.Module):
    """Patches to a grid of cells of 4 x 4 pixels, smoothed by convolutions, to pixels."""

    def __init__(self, config: VggtConfig):
        super().__init__()
        self.cells = config.patch_size // STEPS  # of a patch's side
        self.fuse = LayerFusion(config.depth, 2 * config.embed_dim, config.embed_dim)
        self.spread = nn.Linear(config.embed_dim, DEPTH_CHANNELS * self.cells**2)
        self.smooth = nn.Conv2d(DEPTH_CHANNELS, DEPTH_CHANNELS, kernel_size=3, padding=1)
        self.pixels = nn.Conv2d(DEPTH_CHANNELS, STEPS**2, kernel_size=3, padding=1)

    def forward(self, maps: list[Tensor], rows: int) -> Tensor:
        """Layers (B, S, P, C) of patches in so many rows, to log-depths (B, S, H, W)."""
        patches = self.spread(self.fuse(maps)).transpose(-1, -2).flatten(0, 1).unflatten(-1, (rows, -1))
        cells = F.pixel_shuffle(patches, self.cells)  # (B S, channels, H / 4, W / 4)
        smooth = F.gelu(cells + self.smooth(F.gelu(cells)))
        return F.pixel_shuffle(self.pixels(smooth), STEPS).squeeze(1).unflatten(0, maps[0].shape[:2])


class CameraHead(nn.Module):
    """A frame's patches, weighted by what they say of its camera, to that camera as the scene's first sees it."""

    def __init__(self, config: VggtConfig):
        super().__init__()
        self.fuse = LayerFusion(config.depth, 2 * config.embed_dim, config.embed_dim)
        self.weigh = nn.Linear(config.embed_dim, 1)
        self.hidden = nn.Linear(2 * config.embed_dim, config.embed_dim)
        self.camera = nn.Linear(config.embed_dim, CAMERA_NUMBERS)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Layers (B, S, P, C) to translations, quaternions and angles of view."""
        patches = self.fuse(maps)
        pooled = (self.weigh(patches).softmax(dim=-2) * patches).sum(dim=-2)  # (B, S, width)
        beside_first = torch.cat([pooled, pooled[:, :1].expand_as(pooled)], dim=-1)
        numbers = self.camera(F.gelu(self.hidden(beside_first)))
        translation, quaternion, angle = numbers.split([3, 4, 1], dim=-1)
        still = quaternion.new_tensor([1.0, 0.0, 0.0, 0.0])  # near which it begins, as 0 has no direction
        return translation, F.normalize(quaternion + still, dim=-1), 1 + angle.squeeze(-1)


class GeometryModel(nn.Module):
    """The teacher with its heads, under the tensors' names of the public VGGT."""

    def __init__(self, config: VggtConfig):
        super().__init__()
        if config.patch_size % STEPS:
            raise UserError(f"patch_size={config.patch_size} must be a multiple of the depth head's {STEPS} pixels")
        self.config = config
        self.aggregator = VggtAggregator(config)
        self.depth_head = DepthHead(config)
        self.camera_head = CameraHead(config)

    def forward(self, frames: Tensor) -> Geometry:
        """Of normalized frames (B, S, 3, H, W): those of a sample are frames of one scene."""
        layers = list(range(1, self.config.depth + 1))
        found = self.aggregator(frames, layers)
        maps = [found[layer] for layer in layers]
        rows = frames.shape[-2] // self.config.patch_size
        return Geometry(self.depth_head(maps, rows), *self.camera_head(maps))


@torch.no_grad()
def start_anew(model: GeometryModel, deviation: float = 0.02) -> None:
    """VGGT starts beside a trained encoder, its blocks all but silent; a small one that starts from nothing learns
    faster with every block at full strength, and with tokens that tell the first frame from the others."""
    for module in model.aggregator.modules():
        if isinstance(module, Block):
            module.ls1.gamma.fill_(1.0)
            module.ls2.gamma.fill_(1.0)
    encoder = model.aggregator.patch_embed
    for token in (model.aggregator.camera_token, model.aggregator.register_token, encoder.cls_token):
        nn.init.normal_(token, std=deviation)
    nn.init.normal_(encoder.register_tokens, std=deviation)
