"""AdamW in groups, learning rates and the weight of the alignment as functions of the step, and a moving average."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .distributed.deepspeed_zero import EngineOptimizer, Place, forget_whole, own_part, place_of
from .recipe import AlignmentRecipe, OptimizerConfig, ScheduleConfig
from .vla.parts import part_of


def make_optimizer(
    model: nn.Module, config: OptimizerConfig, part_of: Callable[[str], str] = part_of
) -> torch.optim.AdamW:
    """One group for the policy's trained weights, one for its heads, one for the alignment projector.

    Fused, because that one can leave out a step on the device: see `skip_if_not_finite`."""
    rates = {"heads": config.heads_lr or config.lr, "projector": config.projector_lr or config.lr, "policy": config.lr}
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = part_of(name)
            groups[part if part in rates else "policy"].append(parameter)
    return torch.optim.AdamW(
        [{"params": group, "lr": rates[name], "name": name} for name, group in groups.items() if group],
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def update(optimizer: torch.optim.Optimizer | EngineOptimizer, clip_norm: float | None) -> tuple[Tensor, Tensor]:
    """Steps by the gradients, clipped, and forgets them. Their norm before, and 1.0 if they were not finite: then
    nothing has changed."""
    if isinstance(optimizer, EngineOptimizer):
        return optimizer.update()
    norm = gradient_norm([parameter for group in optimizer.param_groups for parameter in group["params"]], clip_norm)
    skipped = skip_if_not_finite(optimizer, norm)
    optimizer.step()
    optimizer.zero_grad()
    return norm, skipped


def skip_if_not_finite(optimizer: torch.optim.Optimizer, gradient_norm: Tensor) -> Tensor:
    """Makes the next step of a fused optimizer change nothing if the gradients are not finite. 1.0 if so, on the
    device: nobody waits for it."""
    skipped = (~torch.isfinite(gradient_norm)).float()
    optimizer.found_inf = skipped  # type: ignore[attr-defined]  # what torch's own gradient scaler sets
    return skipped


def gradient_norm(parameters: Iterable[nn.Parameter], clip: float | None) -> Tensor:
    """The norm of all gradients, over all ranks, before they are clipped to `clip`."""
    parameters = list(parameters)
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if clip is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return norm.full_tensor() if isinstance(norm, torch.distributed.tensor.DTensor) else norm


def rate_factor(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """What the learning rates are multiplied by in a step, counted from 0."""
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    if schedule.kind == "cosine":
        last = schedule.until if schedule.until is not None else steps
        passed = min(1.0, (step - schedule.warmup) / max(1, last - schedule.warmup))
        return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * passed)) / 2
    if schedule.kind == "step":
        return schedule.factor ** sum(step >= place for place in schedule.at)
    return 1.0


def set_rates(optimizer: torch.optim.Optimizer | EngineOptimizer, factor: float) -> dict[str, float]:
    """Sets the rates of a step from the ones that the groups began with, and returns them by "rate/GROUP"."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
    return {f"rate/{group['name']}": group["lr"] for group in optimizer.param_groups}


def alignment_weight(alignment: AlignmentRecipe | None, step: int) -> float:
    if alignment is None:
        return 0.0
    if alignment.schedule == "constant":
        return alignment.weight
    assert alignment.until is not None  # the recipe's checks ask for it
    if alignment.schedule == "stop":
        return alignment.weight if step < alignment.until else 0.0
    return alignment.weight * max(0.0, 1 - step / alignment.until)


class MovingAverage:
    """An exponential moving average of the trained weights, on their device and in their shards, by name."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = {name: own_part(parameter).clone() for name, parameter in trained(model)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        current = [own_part(parameter) for _, parameter in trained(model)]
        torch._foreach_lerp_(list(self.weights.values()), current, 1 - self.decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchanges the model's weights for the average; once more brings them back."""
        for name, parameter in trained(model):
            part = own_part(parameter)
            kept = part.clone()
            part.copy_(self.weights[name])
            self.weights[name].copy_(kept)
            forget_whole(parameter)

    def places(self, model: nn.Module) -> dict[str, Place]:
        return {name: place_of(parameter, self.weights[name]) for name, parameter in trained(model)}


@contextmanager
def averaged(average: MovingAverage | None, model: nn.Module) -> Iterator[None]:
    """The model with the moving average for its weights, where one is kept."""
    if average is not None:
        average.swap(model)
    yield
    if average is not None:
        average.swap(model)


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
