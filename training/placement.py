"""A model on its devices: alone, copied to each rank (DDP), or in shards over all ranks (FSDP2, also on CPUs)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction


def sharded() -> bool:
    """Whether `accelerate launch` was told to shard. (accelerate itself shards on accelerators alone.)"""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def place(accelerator: Accelerator, model: RocketForActionPrediction) -> nn.Module:
    """The model as the loop calls it. Its optimizer is made afterwards, since shards are other tensors."""
    model.to(accelerator.device)
    return shard(accelerator, model) if sharded() else accelerator.prepare_model(model)


def shard(accelerator: Accelerator, model: RocketForActionPrediction) -> nn.Module:
    """Each of the units that the policy names in a shard group of its own, and the rest in one."""
    low = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
    precision = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    offload = os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true"
    offload_policy = CPUOffloadPolicy() if offload else OffloadPolicy()
    units = model.policy._no_split_modules
    for module in list(model.modules()):
        if type(module).__name__ in units:
            fully_shard(module, mp_policy=precision, offload_policy=offload_policy)
    fully_shard(model, mp_policy=precision, offload_policy=offload_policy)
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
