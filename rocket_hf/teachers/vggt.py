"""VGGT's aggregator: the part of facebook/VGGT-1B that computes features from the frames of a scene.

Parameters have the names of the public checkpoint. A DINOv2 encoder encodes each frame's patches; then blocks that
attend within a frame alternate with blocks that attend across all frames of the scene. Layer i is the concatenation of
the outputs of the i-th block of both kinds.

Shapes: B scenes, S frames, T tokens of a frame (its camera token, its registers, its P patches), D width.
"""

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rocket_hf.errors import UserError
from rocket_hf.modeling.strict_config import suggest_name

from .frozen import IMAGENET_MEAN, IMAGENET_STD, FrozenTeacher
from .teacher import Grid, Resolution, TeacherCard

DINO_EPS = 1e-6
NORM_EPS = 1e-5
DINO_LAYER_SCALE = 1.0
VGGT_LAYER_SCALE = 0.01
TOKEN_STD = 1e-6

Rotation = tuple[Tensor, Tensor]  # cosines and signed sines, each (tokens, head width)


@dataclass(frozen=True)
class VggtConfig:
    """Sizes of a VGGT. The defaults are those of VGGT-1B, whose config.json contains only the first three."""

    img_size: int = 518
    patch_size: int = 14
    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_register_tokens: int = 4
    patch_embed_depth: int = 24
    patch_embed_heads: int = 16
    rope_base: float = 100.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, is_real = getattr(self, field.name), field.name in ("mlp_ratio", "rope_base")
            is_number = isinstance(value, int | float) if is_real else isinstance(value, int)
            lowest = 0 if field.name == "num_register_tokens" else 1e-6
            if not is_number or isinstance(value, bool) or not lowest <= value < 2**31:
                kind = "number" if is_real else "integer"
                raise UserError(f"{field.name} in the configuration of a VGGT must be a positive {kind}, got {value!r}")
        if self.embed_dim % (4 * self.num_heads) or self.embed_dim % self.patch_embed_heads:
            raise UserError(
                f"embed_dim={self.embed_dim} must be a multiple of patch_embed_heads={self.patch_embed_heads} and of "
                f"4 x num_heads={self.num_heads}, because rows and columns rotate pairs of each head's channels"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "VggtConfig":
        known = {field.name for field in fields(cls)}
        for key in values:
            if key not in known:
                raise UserError(f"the configuration of a VGGT has no key {key!r}: {suggest_name(key, known)}")
        return cls(**values)


class VggtAttention(nn.Module):
    def __init__(self, width: int, heads: int, normalize: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm, self.k_norm = (
            nn.LayerNorm(width // heads, eps=NORM_EPS) if normalize else nn.Identity() for _ in range(2)
        )

    def forward(self, hidden: Tensor, rotation: Rotation | None) -> Tensor:
        query, key, value = self.qkv(hidden).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = self.q_norm(query), self.k_norm(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class VggtMlp(nn.Module):
    def __init__(self, width: int, hidden_width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(hidden)))


class VggtLayerScale(nn.Module):
    def __init__(self, width: int, initial: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * self.gamma


class VggtBlock(nn.Module):
    """Transformer block of DINOv2. In the aggregator it also normalizes and rotates queries and keys."""

    def __init__(self, config: VggtConfig, is_dino: bool):
        super().__init__()
        width, heads = config.embed_dim, config.patch_embed_heads if is_dino else config.num_heads
        eps, scale = (DINO_EPS, DINO_LAYER_SCALE) if is_dino else (NORM_EPS, VGGT_LAYER_SCALE)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = VggtAttention(width, heads, normalize=not is_dino)
        self.ls1 = VggtLayerScale(width, scale)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = VggtMlp(width, int(width * config.mlp_ratio))
        self.ls2 = VggtLayerScale(width, scale)

    def forward(self, stream: Tensor, rotation: Rotation | None = None) -> Tensor:
        stream = stream + self.ls1(self.attn(self.norm1(stream), rotation))
        return stream + self.ls2(self.mlp(self.norm2(stream)))


class PatchProjection(nn.Module):
    def __init__(self, config: VggtConfig):
        super().__init__()
        self.proj = nn.Conv2d(3, config.embed_dim, kernel_size=config.patch_size, stride=config.patch_size)


class PatchEncoder(nn.Module):
    """DINOv2 with registers, as the encoder of single frames."""

    def __init__(self, config: VggtConfig):
        super().__init__()
        width, side = config.embed_dim, config.img_size // config.patch_size
        self.side = side
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, width))  # class token first
        self.register_tokens = nn.Parameter(torch.zeros(1, config.num_register_tokens, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # used only in DINOv2's own training
        self.patch_embed = PatchProjection(config)
        self.blocks = nn.ModuleList(VggtBlock(config, is_dino=True) for _ in range(config.patch_embed_depth))
        self.norm = nn.LayerNorm(width, eps=DINO_EPS)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for token in (self.cls_token, self.register_tokens):
            nn.init.normal_(token, std=TOKEN_STD)

    def forward(self, frames: Tensor, positions: Tensor) -> Tensor:
        """Encode normalized frames (N, 3, H, W) as patches (N, P, D), row by row."""
        patches = self.patch_embed.proj(frames).flatten(2).transpose(1, 2)
        leading = torch.cat([self.cls_token + positions[:, :1], self.register_tokens], dim=1)
        stream = torch.cat([leading.expand(len(frames), -1, -1), patches + positions[:, 1:]], dim=1)
        for block in self.blocks:
            stream = block(stream)
        return self.norm(stream[:, leading.shape[1] :])

    def positions(self, grid: Grid) -> Tensor:
        """Return the position embeddings of the class token and of a grid's patches: (1, 1 + P, D)."""
        if grid == (self.side, self.side):
            return self.pos_embed
        class_position, patch_positions = (
            self.pos_embed[:, :1],
            self.pos_embed[:, 1:].unflatten(1, (self.side, self.side)),
        )
        maps = patch_positions.permute(0, 3, 1, 2).float()
        resized = F.interpolate(maps, grid, mode="bicubic", antialias=True).to(class_position.dtype)
        return torch.cat([class_position, resized.flatten(2).transpose(1, 2)], dim=1)


class VggtAggregator(nn.Module):
    """VGGT without its heads: encoder, frame blocks and global blocks."""

    def __init__(self, config: VggtConfig):
        super().__init__()
        self.config = config
        width = config.embed_dim
        self.patch_embed = PatchEncoder(config)
        self.frame_blocks, self.global_blocks = (
            nn.ModuleList(VggtBlock(config, is_dino=False) for _ in range(config.depth)) for _ in range(2)
        )
        # Index 0 is for the scene's first frame, index 1 for all other frames.
        self.camera_token = nn.Parameter(TOKEN_STD * torch.randn(1, 2, 1, width))
        self.register_token = nn.Parameter(TOKEN_STD * torch.randn(1, 2, config.num_register_tokens, width))

    def forward(self, frames: Tensor, layers: list[int], positions: Tensor | None = None) -> dict[int, Tensor]:
        """Return the patches (B, S, P, 2 D) of the requested layers for normalized frames (B, S, 3, H, W).

        `positions` is the result of `patch_embed.positions` for the grid, for callers that cache it."""
        config, (scenes, count) = self.config, frames.shape[:2]
        grid = (frames.shape[-2] // config.patch_size, frames.shape[-1] // config.patch_size)
        positions = self.patch_embed.positions(grid) if positions is None else positions
        patches = self.patch_embed(frames.flatten(0, 1), positions).unflatten(0, (scenes, count))
        leading = torch.cat([self.camera_token, self.register_token], dim=2)
        leading = torch.cat([leading[:, :1], leading[:, 1:].expand(-1, count - 1, -1, -1)], dim=1)
        stream = torch.cat([leading.expand(scenes, -1, -1, -1), patches], dim=2)  # (B, S, T, D)
        return self.run_blocks(stream, grid, layers)

    def run_blocks(self, stream: Tensor, grid: Grid, layers: list[int]) -> dict[int, Tensor]:
        """Alternate frame blocks and global blocks on tokens (B, S, T, D), up to the deepest requested layer."""
        scenes, count, tokens = stream.shape[:3]
        first = 1 + self.config.num_register_tokens
        head_width, base = self.config.embed_dim // self.config.num_heads, self.config.rope_base
        frame_rotation, scene_rotation = (
            rotation_table(grid, first, frames, head_width, base, stream.device, stream.dtype) for frames in (1, count)
        )
        features: dict[int, Tensor] = {}
        for number in range(1, max(layers, default=0) + 1):
            framed = self.frame_blocks[number - 1](stream.reshape(scenes * count, tokens, -1), frame_rotation)
            stream = self.global_blocks[number - 1](framed.reshape(scenes, count * tokens, -1), scene_rotation)
            if number in layers:
                outputs = (output.view(scenes, count, tokens, -1)[:, :, first:] for output in (framed, stream))
                features[number] = torch.cat(list(outputs), dim=-1)
        return features


@lru_cache(maxsize=32)
def rotation_table(
    grid: Grid, first: int, frames: int, head_width: int, base: float, device: torch.device, dtype: torch.dtype
) -> Rotation:
    """Return the rotary embedding of the tokens of `frames` frames, identical for each frame.

    The first `first` tokens of a frame have position (0, 0), its patches (row + 1, column + 1). The first half of a
    head's channels rotates with the row, the second half with the column; within each half, channel k is paired with
    channel k + a quarter of the head's width.
    """
    quarter = head_width // 4
    frequencies = base ** -(torch.arange(quarter, device=device) / quarter)
    positions = torch.cartesian_prod(*(torch.arange(1, side + 1, device=device) for side in grid))  # (P, 2)
    positions = F.pad(positions, (0, 0, first, 0)).repeat(frames, 1)
    angles = positions[:, :, None] * frequencies  # (tokens, 2, quarter)
    cosines = torch.stack([angles.cos(), angles.cos()], dim=2).flatten(1)
    sines = torch.stack([-angles.sin(), angles.sin()], dim=2).flatten(1)
    return cosines.to(dtype), sines.to(dtype)


def rotate(heads: Tensor, rotation: Rotation) -> Tensor:
    """Rotate queries or keys (N, heads, tokens, head width) by their positions."""
    cosines, sines = rotation
    partners = heads.unflatten(-1, (2, 2, -1)).flip(-2).flatten(-3)
    return heads * cosines + partners * sines


class VggtTeacher(FrozenTeacher):
    """VGGT as a teacher: all cameras of a sample attend to each other."""

    module: VggtAggregator

    def __init__(
        self, module: VggtAggregator, card: TeacherCard, resolution: Resolution = "camera", compile: bool = False
    ):
        super().__init__(module, card, resolution)
        self.positions: dict[Grid, Tensor] = {}
        if compile:
            for block in (*module.patch_embed.blocks, *module.frame_blocks, *module.global_blocks):
                block.compile()

    def scene_features(self, pixels: Tensor, layers: list[int]) -> dict[int, Tensor]:
        patch = self.card.patch_size
        grid = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
        if grid not in self.positions:
            self.positions[grid] = self.module.patch_embed.positions(grid)
        return self.module(pixels, layers, self.positions[grid])


def vggt_card(config: VggtConfig, name: str, weights: str, license: str) -> TeacherCard:
    return TeacherCard(
        name=name,
        weights=weights,
        license=license,
        patch_size=config.patch_size,
        depth=config.depth,
        width=2 * config.embed_dim,
        image_size=config.img_size,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
