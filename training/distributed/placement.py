"""A model on its devices: alone, copied to each rank (DDP), or in shards over all ranks (FSDP2, ZeRO; also on CPUs)."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction

from ..optimization import make_optimizer
from ..recipe import OptimizerConfig, Recipe
from .deepspeed_zero import (
    EngineOptimizer,
    Place,
    check_zero,
    end_recording,
    hidden_from_accelerate,
    place_of,
    start_engine,
    zero_stage,
)


def make_accelerator(recipe: Recipe, out: Path) -> Accelerator:
    """On the CPU where there is nothing else, also when `accelerate launch` was not told so."""
    if zero_stage() is not None:
        check_zero(recipe.run.quantize)
    cpu = not torch.accelerator.is_available()
    with hidden_from_accelerate():
        return Accelerator(cpu=cpu, log_with=recipe.run.trackers or None, project_dir=out)


def launched_with(variable: str, default: str) -> bool:
    """What a configuration of accelerate's said, which `accelerate launch` hands on as variables."""
    return os.environ.get(variable, default).lower() == "true"


def sharded() -> bool:
    """(accelerate itself shards on accelerators alone.)"""
    return launched_with("ACCELERATE_USE_FSDP", "false")


def place(
    accelerator: Accelerator, model: Any, config: OptimizerConfig, part_of: Callable[[str], str]
) -> tuple[nn.Module, torch.optim.Optimizer | EngineOptimizer]:
    """The model as the loop calls it, and its optimizer: made after FSDP2's shards, which are other tensors, and before
    DeepSpeed's, which it is told of."""
    model.to(accelerator.device)
    if zero_stage() is not None:
        engine = start_engine(accelerator, model, make_optimizer(model, config, part_of), config.clip_norm)
        return engine, EngineOptimizer(engine)
    placed = shard(accelerator, model) if sharded() else accelerator.prepare_model(model)
    return placed, make_optimizer(model, config, part_of)


def shard(accelerator: Accelerator, model: RocketForActionPrediction) -> nn.Module:
    """Each of the units that the policy names in a shard group of its own, and the rest in one."""
    low = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
    precision = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    offload = CPUOffloadPolicy() if launched_with("FSDP_OFFLOAD_PARAMS", "false") else OffloadPolicy()
    gather_again = launched_with("FSDP_RESHARD_AFTER_FORWARD", "true")
    units = model.policy._no_split_modules
    for module in list(model.modules()):
        if type(module).__name__ in units:
            fully_shard(module, mp_policy=precision, offload_policy=offload, reshard_after_forward=gather_again)
    fully_shard(model, mp_policy=precision, offload_policy=offload)
    register_fsdp_forward_method(model, "predict_action_chunk")
    return model


@contextmanager
def gradients_averaged(model: Any, last: bool) -> Iterator[None]:
    """Only the last of several passes averages its gradients, with those of the passes before it, over the ranks. (ZeRO
    adds each pass to its shards, and has to know which one is the last.)"""
    if zero_stage() is not None:
        model.set_gradient_accumulation_boundary(last)
        yield
    elif isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        yield
    elif isinstance(model, nn.parallel.DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield


@contextmanager
def predicting(model: Any) -> Iterator[None]:
    """Forward passes without a backward one, which leave whole weights where shards were: those are put back."""
    if zero_stage() == 3:
        end_recording(model)
    yield
    if zero_stage() == 3:
        model.empty_partition_cache()
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(place: Place) -> Tensor:
    """A tensor that may be spread over ranks, in one piece, on the CPU. All ranks call it."""
    if isinstance(place, Tensor):
        place = place_of(place)
    if isinstance(place, DTensor):
        return place.full_tensor().cpu()
    return (place if isinstance(place, Tensor) else place.whole()).cpu()
