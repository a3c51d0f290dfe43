"""A model on its devices: alone, copied to each rank (DDP), or in shards over all ranks (FSDP2, also on CPUs)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
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

from .recipe import Recipe


def make_accelerator(recipe: Recipe, out: Path) -> Accelerator:
    """On the CPU where there is nothing else, also when `accelerate launch` was not told so."""
    return Accelerator(cpu=not torch.accelerator.is_available(), log_with=recipe.run.trackers or None, project_dir=out)


def launched_with(variable: str, default: str) -> bool:
    """What a configuration of accelerate's said, which `accelerate launch` hands on as variables."""
    return os.environ.get(variable, default).lower() == "true"


def sharded() -> bool:
    """(accelerate itself shards on accelerators alone.)"""
    return launched_with("ACCELERATE_USE_FSDP", "false")


def place(accelerator: Accelerator, model: RocketForActionPrediction) -> nn.Module:
    """The model as the loop calls it. Its optimizer is made afterwards, since shards are other tensors."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError(
            "this loop does not run in DeepSpeed's engine: training/accelerate_configs/fsdp2.yaml shards as ZeRO-3 "
            "does, fsdp2_whole_weights.yaml as ZeRO-2"
        )
    model.to(accelerator.device)
    return shard(accelerator, model) if sharded() else accelerator.prepare_model(model)


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
def gradients_averaged(model: nn.Module, last: bool) -> Iterator[None]:
    """Only the last of several passes averages its gradients, with those of the passes before it, over the ranks."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        yield
    elif isinstance(model, nn.parallel.DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield


def settle(model: nn.Module) -> None:
    """Puts shards back where a forward pass without a backward one left whole weights."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be spread over ranks, in one piece, on the CPU."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()
