"""Small VGGT with heads for depth and camera poses, the predictions that it is trained on.

Both heads read all layers, so that each layer learns geometry: policies will be aligned with these layers.
Shapes: B scenes, S frames, P patches, C channels of a layer.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rocket_hf.errors import UserError

from ..vggt import VggtAggregator, VggtBlock, VggtConfig

CAMERA_NUMBERS = 8  # translation in meters, quaternion, angle of view in radians
DEPTH_CHANNELS = 32
CELL_SIDE = 4  # pixels of a side of one cell of the depth head


@dataclass
class GeometryPrediction:
    """Predicted depth and cameras of the frames of scenes."""

    log_depth: Tensor  # (B, S, H, W), log of meters along the optical axis
    translations: Tensor  # (B, S, 3), in the coordinates of the scene's first camera
    quaternions: Tensor  # (B, S, 4), of unit length
    angles_of_view: Tensor  # (B, S)


class LayerFusion(nn.Module):
    """Fusion of all layers of a patch into one vector: each layer is normalized, projected and summed."""

    def __init__(self, layers: int, width: int, fused: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.projections = nn.ModuleList(nn.Linear(width, fused) for _ in range(layers))

    def forward(self, maps: list[Tensor]) -> Tensor:
        parts = [project(norm(layer)) for layer, norm, project in zip(maps, self.norms, self.projections, strict=True)]
        return F.gelu(torch.stack(parts).sum(dim=0))


class DepthHead(nn.Module):
    """Depth from patches: patches to cells of 4 x 4 pixels, smoothed by convolutions, to pixels."""

    def __init__(self, config: VggtConfig):
        super().__init__()
        self.cells = config.patch_size // CELL_SIDE  # cells along a patch's side
        self.fuse = LayerFusion(config.depth, 2 * config.embed_dim, config.embed_dim)
        self.spread = nn.Linear(config.embed_dim, DEPTH_CHANNELS * self.cells**2)
        self.smooth = nn.Conv2d(DEPTH_CHANNELS, DEPTH_CHANNELS, kernel_size=3, padding=1)
        self.pixels = nn.Conv2d(DEPTH_CHANNELS, CELL_SIDE**2, kernel_size=3, padding=1)

    def forward(self, maps: list[Tensor], rows: int) -> Tensor:
        """Predict log-depths (B, S, H, W) from layers (B, S, P, C) whose patches form `rows` rows."""
        patches = self.spread(self.fuse(maps)).transpose(-1, -2).flatten(0, 1).unflatten(-1, (rows, -1))
        cells = F.pixel_shuffle(patches, self.cells)  # (B S, channels, H / 4, W / 4)
        smooth = F.gelu(cells + self.smooth(F.gelu(cells)))
        return F.pixel_shuffle(self.pixels(smooth), CELL_SIDE).squeeze(1).unflatten(0, maps[0].shape[:2])


class CameraHead(nn.Module):
    """Pose of each frame's camera, relative to the first camera, from a weighted mean of the frame's patches."""

    def __init__(self, config: VggtConfig):
        super().__init__()
        self.fuse = LayerFusion(config.depth, 2 * config.embed_dim, config.embed_dim)
        self.weigh = nn.Linear(config.embed_dim, 1)
        self.hidden = nn.Linear(2 * config.embed_dim, config.embed_dim)
        self.camera = nn.Linear(config.embed_dim, CAMERA_NUMBERS)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Predict translations, quaternions and angles of view from layers (B, S, P, C)."""
        patches = self.fuse(maps)
        pooled = (self.weigh(patches).softmax(dim=-2) * patches).sum(dim=-2)  # (B, S, width)
        with_first = torch.cat([pooled, pooled[:, :1].expand_as(pooled)], dim=-1)
        numbers = self.camera(F.gelu(self.hidden(with_first)))
        translation, quaternion, angle = numbers.split([3, 4, 1], dim=-1)
        # Predictions start near the identity, because a quaternion of zeros has no direction.
        identity = quaternion.new_tensor([1.0, 0.0, 0.0, 0.0])
        return translation, F.normalize(quaternion + identity, dim=-1), 1 + angle.squeeze(-1)


class GeometryModel(nn.Module):
    """Teacher with its heads. Parameters have the names of the public VGGT."""

    def __init__(self, config: VggtConfig):
        super().__init__()
        if config.patch_size % CELL_SIDE:
            raise UserError(f"patch_size={config.patch_size} must be a multiple of {CELL_SIDE}, the depth head's cells")
        self.config = config
        self.aggregator = VggtAggregator(config)
        self.depth_head = DepthHead(config)
        self.camera_head = CameraHead(config)

    def forward(self, frames: Tensor) -> GeometryPrediction:
        """Predict the geometry of scenes from their normalized frames (B, S, 3, H, W)."""
        layers = list(range(1, self.config.depth + 1))
        features = self.aggregator(frames, layers)
        maps = [features[layer] for layer in layers]
        rows = frames.shape[-2] // self.config.patch_size
        return GeometryPrediction(self.depth_head(maps, rows), *self.camera_head(maps))


@torch.no_grad()
def initialize_from_scratch(model: GeometryModel, deviation: float = 0.02) -> None:
    """Give all blocks full strength, and the tokens distinct values.

    VGGT's own initialization, with nearly silent blocks, assumes a trained encoder. A small model that is trained from
    scratch learns faster with full layer scales, and with tokens that distinguish the first frame from the others.
    """
    for module in model.aggregator.modules():
        if isinstance(module, VggtBlock):
            module.ls1.gamma.fill_(1.0)
            module.ls2.gamma.fill_(1.0)
    encoder = model.aggregator.patch_embed
    for token in (model.aggregator.camera_token, model.aggregator.register_token, encoder.cls_token):
        nn.init.normal_(token, std=deviation)
    nn.init.normal_(encoder.register_tokens, std=deviation)
