"""VGGT's aggregator: the part of facebook/VGGT-1B that turns frames of a scene into features, under its tensors' names.

A DINOv2 encoder describes each frame's patches; then blocks that attend within a frame alternate with blocks that
attend across all frames of the scene. Layer i is what the i-th block of both kinds leave, side by side.

Shapes: B scenes, S frames, T tokens of a frame (its camera token, its registers, its P patches), D width.
"""

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rocket_hf.errors import UserError
from rocket_hf.modeling.strict_config import nearest

from .frozen import IMAGENET_MEAN, IMAGENET_STD, FrozenTeacher
from .teacher import Grid, Resolution, TeacherCard

DINO_EPS = 1e-6
NORM_EPS = 1e-5
DINO_SCALE = 1.0
LAYER_SCALE = 0.01
TOKEN_DEVIATION = 1e-6

Rotation = tuple[Tensor, Tensor]  # cosines and signed sines, (tokens, width of a head)


@dataclass(frozen=True)
class VggtConfig:
    """The defaults are VGGT-1B's, whose file states the first three alone."""

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
            value = getattr(self, field.name)
            if not isinstance(value, int | float) or (value <= 0 and field.name != "num_register_tokens"):
                raise UserError(f"{field.name} of a VGGT must be a positive number, got {value!r}")
        if self.embed_dim % (4 * self.num_heads) or self.embed_dim % self.patch_embed_heads:
            raise UserError(
                f"embed_dim={self.embed_dim} must be a multiple of patch_embed_heads={self.patch_embed_heads} and of "
                f"4 x num_heads={self.num_heads}, as rows and columns rotate pairs of each head's channels"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "VggtConfig":
        known = {field.name for field in fields(cls)}
        for key in values:
            if key not in known:
                raise UserError(f"the configuration of a VGGT has no key {key!r}: {nearest(key, known)}")
        return cls(**values)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, normalized: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm, self.k_norm = (
            nn.LayerNorm(width // heads, eps=NORM_EPS) if normalized else nn.Identity() for _ in range(2)
        )

    def forward(self, hidden: Tensor, rotation: Rotation | None) -> Tensor:
        query, key, value = self.qkv(hidden).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = self.q_norm(query), self.k_norm(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden_width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(hidden)))


class LayerScale(nn.Module):
    def __init__(self, width: int, initial: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * self.gamma


class Block(nn.Module):
    """DINOv2's block; those of the aggregator also normalize queries and keys, and rotate them by their positions."""

    def __init__(self, config: VggtConfig, of_dino: bool):
        super().__init__()
        width, heads = config.embed_dim, config.patch_embed_heads if of_dino else config.num_heads
        eps, scale = (DINO_EPS, DINO_SCALE) if of_dino else (NORM_EPS, LAYER_SCALE)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, normalized=not of_dino)
        self.ls1 = LayerScale(width, scale)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        self.ls2 = LayerScale(width, scale)

    def forward(self, stream: Tensor, rotation: Rotation | None = None) -> Tensor:
        stream = stream + self.ls1(self.attn(self.norm1(stream), rotation))
        return stream + self.ls2(self.mlp(self.norm2(stream)))


class PatchProjection(nn.Module):
    def __init__(self, config: VggtConfig):
        super().__init__()
        self.proj = nn.Conv2d(3, config.embed_dim, kernel_size=config.patch_size, stride=config.patch_size)


class PatchEncoder(nn.Module):
    """DINOv2 with registers."""

    def __init__(self, config: VggtConfig):
        super().__init__()
        width, side = config.embed_dim, config.img_size // config.patch_size
        self.side = side
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, width))  # the class token's first
        self.register_tokens = nn.Parameter(torch.zeros(1, config.num_register_tokens, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # never seen outside DINOv2's own training
        self.patch_embed = PatchProjection(config)
        self.blocks = nn.ModuleList(Block(config, of_dino=True) for _ in range(config.patch_embed_depth))
        self.norm = nn.LayerNorm(width, eps=DINO_EPS)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for token in (self.cls_token, self.register_tokens):
            nn.init.normal_(token, std=TOKEN_DEVIATION)

    def forward(self, frames: Tensor, positions: Tensor) -> Tensor:
        """Normalized frames (N, 3, H, W) to their patches (N, P, D), row by row."""
        patches = self.patch_embed.proj(frames).flatten(2).transpose(1, 2)
        leading = torch.cat([self.cls_token + positions[:, :1], self.register_tokens], dim=1)
        stream = torch.cat([leading.expand(len(frames), -1, -1), patches + positions[:, 1:]], dim=1)
        for block in self.blocks:
            stream = block(stream)
        return self.norm(stream[:, leading.shape[1] :])

    def positions(self, grid: Grid) -> Tensor:
        """The position embedding of the class token and of a grid's patches: (1, 1 + P, D)."""
        if grid == (self.side, self.side):
            return self.pos_embed
        of_class, of_patches = self.pos_embed[:, :1], self.pos_embed[:, 1:].unflatten(1, (self.side, self.side))
        maps = of_patches.permute(0, 3, 1, 2).float()
        resized = F.interpolate(maps, grid, mode="bicubic", antialias=True).to(of_class.dtype)
        return torch.cat([of_class, resized.flatten(2).transpose(1, 2)], dim=1)


class VggtAggregator(nn.Module):
    def __init__(self, config: VggtConfig):
        super().__init__()
        self.config = config
        width = config.embed_dim
        self.patch_embed = PatchEncoder(config)
        self.frame_blocks, self.global_blocks = (
            nn.ModuleList(Block(config, of_dino=False) for _ in range(config.depth)) for _ in range(2)
        )
        # The first of two is for the scene's first frame, the second for all others.
        self.camera_token = nn.Parameter(TOKEN_DEVIATION * torch.randn(1, 2, 1, width))
        self.register_token = nn.Parameter(TOKEN_DEVIATION * torch.randn(1, 2, config.num_register_tokens, width))

    def forward(self, frames: Tensor, layers: list[int], positions: Tensor | None = None) -> dict[int, Tensor]:
        """Normalized frames (B, S, 3, H, W) to the patches of the layers asked for, (B, S, P, 2 D).

        `positions` are `patch_embed.positions` of the grid, for those who keep them."""
        config, (scenes, count) = self.config, frames.shape[:2]
        grid = (frames.shape[-2] // config.patch_size, frames.shape[-1] // config.patch_size)
        positions = self.patch_embed.positions(grid) if positions is None else positions
        patches = self.patch_embed(frames.flatten(0, 1), positions).unflatten(0, (scenes, count))
        leading = torch.cat([self.camera_token, self.register_token], dim=2)
        leading = torch.cat([leading[:, :1], leading[:, 1:].expand(-1, count - 1, -1, -1)], dim=1)
        stream = torch.cat([leading.expand(scenes, -1, -1, -1), patches], dim=2)  # (B, S, T, D)
        return self.alternate(stream, grid, layers)

    def alternate(self, stream: Tensor, grid: Grid, layers: list[int]) -> dict[int, Tensor]:
        scenes, count, tokens = stream.shape[:3]
        first = 1 + self.config.num_register_tokens
        head_width, base = self.config.embed_dim // self.config.num_heads, self.config.rope_base
        in_frame, in_scene = (
            rotation_table(grid, first, each, head_width, base, stream.device, stream.dtype) for each in (1, count)
        )
        kept: dict[int, Tensor] = {}
        for number in range(1, max(layers, default=0) + 1):
            framed = self.frame_blocks[number - 1](stream.reshape(scenes * count, tokens, -1), in_frame)
            stream = self.global_blocks[number - 1](framed.reshape(scenes, count * tokens, -1), in_scene)
            if number in layers:
                both = (side.view(scenes, count, tokens, -1)[:, :, first:] for side in (framed, stream))
                kept[number] = torch.cat(list(both), dim=-1)
        return kept


@lru_cache(maxsize=32)
def rotation_table(
    grid: Grid, first: int, frames: int, head_width: int, base: float, device: torch.device, dtype: torch.dtype
) -> Rotation:
    """Angles of the tokens of so many frames: the `first` of each stand at (0, 0), patches at (row + 1, column + 1).

    The first half of a head's channels turns with the row, the second with the column; within a half, its first half
    and its second are the two sides of what turns. Nothing tells the frames apart.
    """
    quarter = head_width // 4
    speed = base ** -(torch.arange(quarter, device=device) / quarter)
    places = torch.cartesian_prod(*(torch.arange(1, side + 1, device=device) for side in grid))  # (P, 2)
    places = F.pad(places, (0, 0, first, 0)).repeat(frames, 1)
    angles = places[:, :, None] * speed  # (tokens, 2, quarter)
    cosines = torch.stack([angles.cos(), angles.cos()], dim=2).flatten(1)
    sines = torch.stack([-angles.sin(), angles.sin()], dim=2).flatten(1)
    return cosines.to(dtype), sines.to(dtype)


def rotate(heads: Tensor, rotation: Rotation) -> Tensor:
    """Queries or keys (N, heads, tokens, head width), turned by their positions."""
    cosines, sines = rotation
    partners = heads.unflatten(-1, (2, 2, -1)).flip(-2).flatten(-3)
    return heads * cosines + partners * sines


class VggtTeacher(FrozenTeacher):
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
