"""AdamW with parameter groups, schedules of the learning rates and of the alignment weight, and a moving average."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .distributed.tensor_storage import StoredTensor, discard_gathered_copy, local_part, stored_tensor
from .recipe import AlignmentSettings, BaseOptimizerConfig, OptimizerConfig, ScheduleConfig


def trainable_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


# The optimizer


def create_optimizer(model: nn.Module, config: BaseOptimizerConfig, part_of: Callable[[str], str]) -> torch.optim.AdamW:
    """Create AdamW with one group for the policy, one for its heads and one for the alignment projector.

    `part_of` returns the part of a parameter by its name: "heads", "projector", or any other part of the policy. The
    fused implementation is used because it can skip a step on the device: see `skip_if_not_finite`.
    """
    rates = {"heads": config.heads_lr or config.lr, "projector": config.lr, "policy": config.lr}
    if isinstance(config, OptimizerConfig) and config.projector_lr:
        rates["projector"] = config.projector_lr
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for name, parameter in trainable_parameters(model):
        part = part_of(name)
        groups[part if part in rates else "policy"].append(parameter)
    return torch.optim.AdamW(
        [{"params": group, "lr": rates[name], "name": name} for name, group in groups.items() if group],
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def create_adam_state(optimizer: torch.optim.Optimizer) -> None:
    """Create Adam's moments and step counts, which otherwise exist only after the first step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def clip_and_step(optimizer: torch.optim.Optimizer, clip_norm: float | None) -> tuple[Tensor, Tensor]:
    """Clip the gradients, update the weights and zero the gradients.

    Return the gradient norm before clipping, and 1.0 if the update was skipped because the gradients are not finite.
    """
    norm = clip_gradients([parameter for group in optimizer.param_groups for parameter in group["params"]], clip_norm)
    skipped = skip_if_not_finite(optimizer, norm)
    optimizer.step()
    optimizer.zero_grad()
    return norm, skipped


def clip_gradients(parameters: Iterable[nn.Parameter], clip_norm: float | None) -> Tensor:
    """Clip gradients to a total norm; return their norm over all ranks before clipping."""
    parameters = list(parameters)
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    return norm.full_tensor() if isinstance(norm, torch.distributed.tensor.DTensor) else norm


def skip_if_not_finite(optimizer: torch.optim.Optimizer, gradient_norm: Tensor) -> Tensor:
    """Make the next step of a fused optimizer change nothing if the gradients are not finite.

    Return 1.0 in that case, else 0.0, as a tensor on the device, so that the host does not wait for the device.
    """
    skipped = (~torch.isfinite(gradient_norm)).float()
    optimizer.found_inf = skipped  # type: ignore[attr-defined]  # the attribute that torch's GradScaler sets
    return skipped


# Schedules


def learning_rate_factor(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Return the learning-rate multiplier at `step` (0-based)."""
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    if schedule.kind == "cosine":
        last = schedule.until if schedule.until is not None else steps
        progress = min(1.0, (step - schedule.warmup) / max(1, last - schedule.warmup))
        return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * progress)) / 2
    if schedule.kind == "step":
        return schedule.factor ** sum(step >= decay_step for decay_step in schedule.at)
    return 1.0


def set_learning_rates(param_groups: list[dict], factor: float) -> dict[str, float]:
    """Multiply the initial learning rate of each parameter group; return the new rates as "rate/GROUP"."""
    for group in param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
    return {f"rate/{group['name']}": group["lr"] for group in param_groups}


def alignment_weight(alignment: AlignmentSettings | None, step: int) -> float:
    """Return the weight of the alignment losses at `step` (0-based), 0 without alignment."""
    if alignment is None:
        return 0.0
    if alignment.schedule == "constant":
        return alignment.weight
    assert alignment.until is not None  # ensured by check_recipe
    if alignment.schedule == "stop":
        return alignment.weight if step < alignment.until else 0.0
    return alignment.weight * max(0.0, 1 - step / alignment.until)


# Moving average of the weights


class MovingAverage:
    """Exponential moving average of the trained weights, stored by name and split over the ranks like the weights."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = {name: local_part(parameter).clone() for name, parameter in trainable_parameters(model)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        current = [local_part(parameter) for _, parameter in trainable_parameters(model)]
        torch._foreach_lerp_(list(self.weights.values()), current, 1 - self.decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the weights of the model and the averaged weights. A second call restores them."""
        for name, parameter in trainable_parameters(model):
            part = local_part(parameter)
            previous = part.clone()
            part.copy_(self.weights[name])
            self.weights[name].copy_(previous)
            discard_gathered_copy(parameter)

    def stored_tensors(self, model: nn.Module) -> dict[str, StoredTensor]:
        return {name: stored_tensor(parameter, self.weights[name]) for name, parameter in trainable_parameters(model)}


@contextmanager
def averaged_weights(average: MovingAverage | None, model: nn.Module) -> Iterator[None]:
    """Give the model its averaged weights inside the context, if there is an average."""
    if average is not None:
        average.swap(model)
    yield
    if average is not None:
        average.swap(model)
