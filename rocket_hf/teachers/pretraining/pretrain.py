"""Training loop of a small VGGT on recorded scenes. It is reproducible bit for bit on one machine."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from ..vggt import VggtConfig
from .heads import GeometryModel, initialize_from_scratch
from .losses import geometry_losses, weighted_sum
from .scenes import RgbdScenes, draw_scene_batch

SMALL: dict[str, Any] = {
    "patch_size": 16,
    "embed_dim": 128,
    "depth": 4,
    "num_heads": 4,
    "mlp_ratio": 2.0,
    "patch_embed_depth": 2,
    "patch_embed_heads": 4,
}
SINGLE_FRAME_SHARE = 0.3  # share of the batches whose scenes have one frame only
WARM_UP = 0.03  # share of the steps
MAX_GRADIENT_NORM = 1.0
BETAS = (0.9, 0.95)
PROGRESS_INTERVAL = 10


@dataclass(frozen=True)
class PretrainingSettings:
    """Hyperparameters of pretraining."""

    steps: int = 3000
    batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    frames: int = 2  # maximum number of frames per scene
    seed: int = 0


@dataclass
class PretrainingResult:
    """Trained model and its loss curves."""

    model: GeometryModel
    losses: dict[str, list[float]] = field(default_factory=dict)  # value of each named loss at every step


def small_vggt(image_size: int) -> VggtConfig:
    """Return the configuration of a small VGGT for square images of this side in pixels."""
    return VggtConfig(img_size=image_size, **SMALL)


def build_model(config: VggtConfig, seed: int) -> GeometryModel:
    """Build the model before training. Its layers are also the untrained baseline of the report."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GeometryModel(config)
        initialize_from_scratch(model)
    return model


def pretrain(scenes: RgbdScenes, config: VggtConfig, settings: PretrainingSettings) -> PretrainingResult:
    model = build_model(config, settings.seed).train()
    groups = parameter_groups(model, settings.weight_decay)
    optimizer = AdamW(groups, lr=settings.learning_rate, betas=BETAS, fused=True)
    schedule = LambdaLR(optimizer, lambda step: warm_up_and_cosine(step, settings.steps))
    generator = Generator().manual_seed(settings.seed)
    result = PretrainingResult(model)
    bar = tqdm(range(settings.steps), desc="teacher", unit="step", disable=None, leave=False)
    for step in bar:
        frames = 1 if torch.rand((), generator=generator) < SINGLE_FRAME_SHARE else settings.frames
        images, targets = draw_scene_batch(scenes, settings.batch_size, frames, generator)
        losses = geometry_losses(model(images), targets)
        optimizer.zero_grad()
        weighted_sum(losses).backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        for name, loss in losses.items():
            result.losses.setdefault(name, []).append(loss.item())
        if step % PROGRESS_INTERVAL == 0:
            bar.set_postfix({name: f"{loss.item():.3f}" for name, loss in losses.items()})
    model.eval()
    return result


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Apply weight decay to matrices, but not to biases, norms, scales and tokens."""
    named = dict(model.named_parameters())
    matrices = {name for name, weight in named.items() if name.endswith("weight") and weight.ndim > 1}
    return [
        {"params": [named[name] for name in named if name in matrices], "weight_decay": weight_decay},
        {"params": [named[name] for name in named if name not in matrices], "weight_decay": 0.0},
    ]


def warm_up_and_cosine(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / (1 + WARM_UP * steps))
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps))
