"""Placement of a model and its optimizer: in one process, replicated (DDP), or sharded (FSDP2, DeepSpeed's ZeRO).

The training loop, checkpoints and measurements use the functions of this file and of `tensor_storage.py`; which library
shards the model is decided here alone, by the accelerate configuration. FSDP2 works on CPUs too, where accelerate
itself would not shard.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from torch import Tensor, nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction

from ..optimization import clip_and_step, create_adam_state, create_optimizer, trainable_parameters
from ..recipe import BaseOptimizerConfig
from .deepspeed_zero import (
    ZeroOptimizer,
    check_zero_settings,
    create_engine,
    end_module_trace,
    hidden_from_accelerate,
    zero_stage,
)
from .tensor_storage import StoredTensor

ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")

Optimizer = torch.optim.Optimizer | ZeroOptimizer


# What the accelerate configuration selects


def connect_processes() -> PartialState:
    """Connect the processes of this run, on the CPU if there is no other device, whatever the accelerate
    configuration."""
    with hidden_from_accelerate():
        return PartialState(cpu=not torch.accelerator.is_available())


def create_accelerator(trackers: list[str], out: Path, quantize: bool) -> Accelerator:
    """Create the Accelerator of the connected processes."""
    if zero_stage() is not None:
        check_zero_settings(quantize)
    cpu = not torch.accelerator.is_available()
    with hidden_from_accelerate():
        return Accelerator(cpu=cpu, log_with=trackers or None, project_dir=out)


def describe_processes(accelerator: Accelerator) -> str:
    """Return the number of processes and machines, and the device of the main process."""
    processes, machines = accelerator.num_processes, int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    device = str(accelerator.device)
    if accelerator.device.type == "cuda":
        device += f" ({torch.cuda.get_device_name(accelerator.device)})"
    count = f"{processes} process{'es' if processes > 1 else ''} on {machines} machine{'s' if machines > 1 else ''}"
    return f"{count}, the first on {device}, mixed precision {accelerator.mixed_precision}"


def is_set(variable: str, default: str) -> bool:
    """Return a boolean setting of the accelerate configuration, which `accelerate launch` passes as a variable."""
    return os.environ.get(variable, default).lower() == "true"


def uses_fsdp() -> bool:
    return is_set("ACCELERATE_USE_FSDP", "false")


def gradients_are_sharded() -> bool:
    """Return whether each rank holds only parts of the gradients and moments (FSDP2, ZeRO-2, ZeRO-3)."""
    return uses_fsdp() or zero_stage() is not None


def weights_are_sharded() -> bool:
    """Return whether each rank holds only parts of the weights (FSDP2, ZeRO-3)."""
    return uses_fsdp() or zero_stage() == 3


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Set the precision of float32 matrix products inside the context, as `torch.set_float32_matmul_precision` does.

    With "medium", torch multiplies on CPUs with oneDNN, which is about twice as fast as MKL on AMD's CPUs, but makes
    the fused attention four times slower. Attention is then computed by plain matrix products.
    """
    previous, is_fused = torch.get_float32_matmul_precision(), torch.backends.cuda.flash_sdp_enabled()
    torch.set_float32_matmul_precision(precision)
    if precision == "medium" and not torch.accelerator.is_available():
        torch.backends.cuda.enable_flash_sdp(False)  # This switch is also that of CPUs.
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(previous)
        torch.backends.cuda.enable_flash_sdp(is_fused)


# Model and optimizer


def place(
    accelerator: Accelerator, model: Any, config: BaseOptimizerConfig, part_of: Callable[[str], str]
) -> tuple[nn.Module, Optimizer]:
    """Move a model to its devices; return it as the training loop calls it (maybe wrapped), and its optimizer.

    The optimizer is created after FSDP2 has sharded the model, which replaces its tensors, and before DeepSpeed's
    engine, which takes the optimizer as an argument.
    """
    model.to(accelerator.device)
    if zero_stage() is not None:
        engine = create_engine(accelerator, model, create_optimizer(model, config, part_of), config.clip_norm)
        return engine, ZeroOptimizer(engine)
    placed = shard_with_fsdp(accelerator, model) if uses_fsdp() else accelerator.prepare_model(model)
    return placed, create_optimizer(model, config, part_of)


def shard_with_fsdp(accelerator: Accelerator, model: RocketForActionPrediction) -> nn.Module:
    """Shard each block that the policy names as a unit of its own, and the remaining weights as one unit."""
    low_precision = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
    precision = MixedPrecisionPolicy(param_dtype=low_precision, reduce_dtype=torch.float32, cast_forward_inputs=False)
    offload = CPUOffloadPolicy() if is_set("FSDP_OFFLOAD_PARAMS", "false") else OffloadPolicy()
    reshard = is_set("FSDP_RESHARD_AFTER_FORWARD", "true")
    units = model.policy._no_split_modules
    for module in list(model.modules()):
        if type(module).__name__ in units:
            fully_shard(module, mp_policy=precision, offload_policy=offload, reshard_after_forward=reshard)
    fully_shard(model, mp_policy=precision, offload_policy=offload)
    register_fsdp_forward_method(model, "predict_action_chunk")
    return model


@contextmanager
def gradients_averaged(model: Any, is_last: bool) -> Iterator[None]:
    """Run one backward pass of a step. Only the last pass averages the accumulated gradients over the ranks.

    ZeRO adds every pass to its shards and only has to know which pass is the last.
    """
    if zero_stage() is not None:
        model.set_gradient_accumulation_boundary(is_last)
        yield
    elif isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last)
        yield
    elif isinstance(model, nn.parallel.DistributedDataParallel) and not is_last:
        with model.no_sync():
            yield
    else:
        yield


def step(optimizer: Optimizer, clip_norm: float | None) -> tuple[Tensor, Tensor]:
    """Clip the gradients, update the weights and zero the gradients, unless the gradients are not finite.

    Return the norm of the gradients before clipping, and 1.0 if the update was skipped, both on the device.
    """
    if isinstance(optimizer, ZeroOptimizer):
        return optimizer.step()  # The engine was created with `clip_norm`.
    return clip_and_step(optimizer, clip_norm)


@contextmanager
def predicting(model: Any) -> Iterator[None]:
    """Run forward passes without a backward pass. They leave gathered weights, which are resharded at the end."""
    if zero_stage() == 3:
        end_module_trace(model)
    yield
    if zero_stage() == 3:
        model.empty_partition_cache()
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


# State of the optimizer


def optimizer_state(model: nn.Module, optimizer: Optimizer) -> Mapping[str, StoredTensor]:
    """Return Adam's moments and step counts, named after the weights."""
    if isinstance(optimizer, ZeroOptimizer):
        return optimizer.state_tensors(trainable_parameters(model))
    return {
        f"{name}.{key}": optimizer.state[parameter][key]
        for name, parameter in trainable_parameters(model)
        if parameter in optimizer.state
        for key in ADAM_STATE
    }


def prepare_optimizer_for_loading(optimizer: Optimizer) -> None:
    """Create the state that a checkpoint is loaded into. The weights of the model must have been loaded before."""
    if isinstance(optimizer, ZeroOptimizer):
        optimizer.adopt_model_weights()
    else:
        create_adam_state(optimizer)
