"""Flow matching as pi0 uses it (arXiv 2410.24164, section IV and appendix B): time 1 is noise, time 0 the actions."""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from .contract import mean_over_steps

# The training times are TIME_SCALE * Beta(TIME_ALPHA, 1) + TIME_OFFSET, which favours noisy actions and never draws 0.
TIME_ALPHA, TIME_SCALE, TIME_OFFSET = 1.5, 0.999, 0.001
# Periods of the sines that embed the time.
MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0


def draw_noise(shape: tuple[int, ...], device: torch.device, generator: Generator | None) -> Tensor:
    """Standard normal noise. A generator on another device gives the same noise everywhere."""
    source = generator.device if generator is not None else device
    return torch.randn(shape, generator=generator, device=source).to(device)


def draw_time(batch_size: int, device: torch.device, generator: Generator | None) -> Tensor:
    """Times for training, (B,). A Beta(alpha, 1) variable is the alpha-th root of a uniform one."""
    source = generator.device if generator is not None else device
    uniform = torch.rand(batch_size, generator=generator, device=source).to(device)
    return TIME_SCALE * uniform ** (1 / TIME_ALPHA) + TIME_OFFSET


def embed_time(time: Tensor, width: int) -> Tensor:
    """Sines and cosines of the time at `width` / 2 periods, (B, width). In float64, since the angles reach 1,600."""
    precise = torch.float32 if time.device.type == "mps" else torch.float64
    fraction = torch.linspace(0, 1, width // 2, dtype=precise, device=time.device)
    period = MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** fraction
    angle = 2 * math.pi / period * time[:, None].to(precise)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


def flow_matching_loss(velocity: Tensor, noise: Tensor, actions: Tensor, is_pad: Tensor | None) -> Tensor:
    """Mean squared error of the velocity over the steps that exist."""
    error = (velocity - (noise - actions)).square().mean(dim=-1)  # (B, chunk)
    return mean_over_steps(error, is_pad)


def integrate(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Euler steps from noise at time 1 to actions at time 0; `velocity` takes actions (B, chunk, A) and time (B,)."""
    actions = noise
    for step in range(steps):
        time = torch.full((len(noise),), 1 - step / steps, device=noise.device)
        actions = actions - velocity(actions, time) / steps
    return actions
