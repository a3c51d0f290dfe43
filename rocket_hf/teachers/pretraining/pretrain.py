"""The training of a small VGGT on recorded scenes: one loop, reproducible bit for bit on one machine."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from ..vggt import VggtConfig
from .heads import GeometryModel, start_anew
from .losses import geometry_losses, weighted
from .scenes import Scenes, draw_batch

SMALL: dict[str, Any] = {
    "patch_size": 16,
    "embed_dim": 128,
    "depth": 4,
    "num_heads": 4,
    "mlp_ratio": 2.0,
    "patch_embed_depth": 2,
    "patch_embed_heads": 4,
}
ALONE = 0.3  # part of the batches in which every scene has one frame only
WARM_UP = 0.03  # part of the steps
CLIP = 1.0
BETAS = (0.9, 0.95)
SHOWN_EVERY = 10


@dataclass(frozen=True)
class Settings:
    steps: int = 3000
    batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    frames: int = 2  # of a scene, at most
    seed: int = 0


@dataclass
class Pretrained:
    model: GeometryModel
    losses: dict[str, list[float]] = field(default_factory=dict)  # by name, of every step


def small_vggt(image_size: int) -> VggtConfig:
    """Two million parameters, for pictures of this side in pixels."""
    return VggtConfig(img_size=image_size, **SMALL)


def new_model(config: VggtConfig, seed: int) -> GeometryModel:
    """As it is before training: its teacher is the untrained one that the trained is compared with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GeometryModel(config)
        start_anew(model)
    return model


def pretrain(scenes: Scenes, config: VggtConfig, settings: Settings) -> Pretrained:
    model = new_model(config, settings.seed).train()
    groups = parameter_groups(model, settings.weight_decay)
    optimizer = AdamW(groups, lr=settings.learning_rate, betas=BETAS, fused=True)
    schedule = LambdaLR(optimizer, lambda step: warm_up_and_cosine(step, settings.steps))
    draw = Generator().manual_seed(settings.seed)
    trained = Pretrained(model)
    bar = tqdm(range(settings.steps), desc="teacher", unit="step", disable=None, leave=False)
    for step in bar:
        frames = 1 if torch.rand((), generator=draw) < ALONE else settings.frames
        pictures, truth = draw_batch(scenes, settings.batch_size, frames, draw)
        losses = geometry_losses(model(pictures), truth)
        optimizer.zero_grad()
        weighted(losses).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        for name, loss in losses.items():
            trained.losses.setdefault(name, []).append(loss.item())
        if step % SHOWN_EVERY == 0:
            bar.set_postfix({name: f"{loss.item():.3f}" for name, loss in losses.items()})
    model.eval()
    return trained


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay; biases, norms, scales and tokens do not."""
    named = dict(model.named_parameters())
    matrices = {name for name, weight in named.items() if name.endswith("weight") and weight.ndim > 1}
    return [
        {"params": [named[name] for name in named if name in matrices], "weight_decay": weight_decay},
        {"params": [named[name] for name in named if name not in matrices], "weight_decay": 0.0},
    ]


def warm_up_and_cosine(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / (1 + WARM_UP * steps))
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps))
