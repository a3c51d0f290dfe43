"""Flow matching as in pi0 (arXiv 2410.24164, section IV and appendix B): time 1 is noise, time 0 the actions."""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from .policy_interface import mean_over_steps

# The training times are TIME_SCALE * Beta(TIME_ALPHA, 1) + TIME_OFFSET, which favors noisy actions and never draws 0.
TIME_ALPHA, TIME_SCALE, TIME_OFFSET = 1.5, 0.999, 0.001
# Range of the periods of the sines and cosines that embed the time.
MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0


def draw_noise(shape: tuple[int, ...], device: torch.device, generator: Generator | None) -> Tensor:
    """Draw standard normal noise on the generator's device, so that a CPU generator gives the same noise everywhere."""
    source = generator.device if generator is not None else device
    return torch.randn(shape, generator=generator, device=source).to(device)


def draw_time(batch_size: int, device: torch.device, generator: Generator | None) -> Tensor:
    """Draw flow times (B,) for training. A Beta(alpha, 1) variable is the alpha-th root of a uniform one."""
    source = generator.device if generator is not None else device
    uniform = torch.rand(batch_size, generator=generator, device=source).to(device)
    return TIME_SCALE * uniform ** (1 / TIME_ALPHA) + TIME_OFFSET


def embed_time(time: Tensor, width: int) -> Tensor:
    """Embed times (B,) as sines and cosines at `width` / 2 periods: (B, width).

    The angles reach 1,600 radians and are therefore computed in float64.
    """
    dtype = torch.float32 if time.device.type == "mps" else torch.float64
    fraction = torch.linspace(0, 1, width // 2, dtype=dtype, device=time.device)
    period = MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** fraction
    angle = 2 * math.pi / period * time[:, None].to(dtype)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


def flow_matching_loss(
    velocity: Tensor, noise: Tensor, actions: Tensor, is_pad: Tensor | None, mask: Tensor | None = None
) -> Tensor:
    """Return the mean squared error of the velocity, whose target is noise - actions, over the steps that exist.

    The mean over the dimensions is that of the ones in which the mask (B, A) is True, so that each sample has the same
    weight however many dimensions its robot has.
    """
    error = (velocity - (noise - actions)).square()  # (B, chunk, A)
    if mask is None:
        return mean_over_steps(error.mean(dim=-1), is_pad)
    exists = mask[:, None].to(error.dtype)
    return mean_over_steps((error * exists).sum(dim=-1) / exists.sum(dim=-1).clamp_min(1), is_pad)


def integrate(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Integrate from noise at time 1 to actions at time 0 with Euler steps.

    Args:
        velocity: Function that returns the velocity (B, chunk, A) of actions (B, chunk, A) at time (B,).
        noise: (B, chunk, A).
        steps: Number of Euler steps.
    """
    actions = noise
    for step in range(steps):
        time = torch.full((len(noise),), 1 - step / steps, device=noise.device)
        actions = actions - velocity(actions, time) / steps
    return actions
