"""DeepSpeed's ZeRO-2 and ZeRO-3: its engine and its optimizer. Only `placement.py` uses this file.

An accelerate configuration selects DeepSpeed through environment variables. They are hidden from accelerate itself,
which would bypass the engine on CPUs and, on GPUs, decide when a step ends. This way one code path is used, and tested,
on both.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rocket_hf.errors import UserError

from .tensor_storage import StoredTensor, ZeroStepCount, discard_gathered_copy, stored_moment

USE_DEEPSPEED = "ACCELERATE_USE_DEEPSPEED"
SETTING = "ACCELERATE_DEEPSPEED_{}"
MOMENTS = ("exp_avg", "exp_avg_sq")
PERSISTENCE_THRESHOLD = 100_000  # ZeRO-3 keeps weights of at most this many elements gathered


def zero_stage() -> int | None:
    """Return the ZeRO stage, 2 or 3, or None if the accelerate configuration does not select DeepSpeed."""
    if os.environ.get(USE_DEEPSPEED, "false").lower() != "true":
        return None
    return int(os.environ.get(SETTING.format("ZERO_STAGE"), "2"))


@contextmanager
def hidden_from_accelerate() -> Iterator[None]:
    value = os.environ.pop(USE_DEEPSPEED, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[USE_DEEPSPEED] = value


def check_zero_settings(quantize: bool) -> None:
    """Raise a UserError if the accelerate configuration, or quantization, is not supported with ZeRO."""
    stage = zero_stage()
    if stage not in (2, 3):
        raise UserError(f"deepspeed_config: zero_stage must be 2 or 3, got {stage}: use ddp.yaml to shard nothing")
    if os.environ.get(SETTING.format("CONFIG_FILE"), "none") != "none":
        raise UserError("deepspeed_config_file is not supported: remove it; the recipe contains these settings")
    for name in ("OFFLOAD_OPTIMIZER_DEVICE", "OFFLOAD_PARAM_DEVICE"):
        if os.environ.get(SETTING.format(name), "none") != "none":
            raise UserError(
                f"deepspeed_config: {name.lower()} must be none: to offload use fsdp2.yaml with fsdp_offload_params"
            )
    if quantize and stage == 3:
        raise UserError("run.quantize needs unsharded weights, but ZeRO-3 shards them: use zero2.yaml")
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "the accelerate configuration selects DeepSpeed, which is not installed: "
            "`pip install 'rocket-hf[deepspeed]'`, or use training/accelerate_configs/fsdp2.yaml, which shards like "
            "ZeRO-3"
        )


def import_deepspeed(device: torch.device) -> ModuleType:
    """Import DeepSpeed for the device that accelerate has chosen, with only warnings logged."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    library = importlib.import_module("deepspeed")
    library.utils.logger.setLevel("WARNING")
    if device.type == "cpu":  # Otherwise DeepSpeed compiles its own all-reduce, though gloo has one.
        library.ops.__compatible_ops__ = {}
    return library


def create_engine(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float | None
) -> nn.Module:
    """Wrap a model in DeepSpeed's engine, which splits the optimizer's weights over the ranks.

    Weights stay float32, as in the other placements, and autocast computes in bfloat16. ZeRO-3 also gathers weights in
    bfloat16, because weights gathered in float32 would be copied for every layer; ZeRO-2 accumulates gradients in
    float32.
    """
    is_bf16 = accelerator.mixed_precision == "bf16"
    stage = zero_stage()
    config = {
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed uses it only in its own logs.
        "gradient_accumulation_steps": 1,  # The training loop marks the last pass of a step and divides the loss.
        "gradient_clipping": clip_norm or 0.0,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": PERSISTENCE_THRESHOLD},
        "torch_autocast": {"enabled": is_bf16, "dtype": "bfloat16"}
        | ({} if stage == 3 else {"lower_precision_safe_modules": []}),
        "steps_per_print": 2**62,
    }
    return import_deepspeed(accelerator.device).initialize(model=model, optimizer=optimizer, config=config)[0]


def end_module_trace(engine: Any) -> None:
    """End the trace in which ZeRO-3 records when a step needs which weight, to prefetch weights.

    Forward passes outside of training steps would become part of the trace, and each later step would search them.
    """
    engine.optimizer.parameter_offload.get_param_coordinator().reset_step()


class ZeroOptimizer:
    """The optimizer inside DeepSpeed's engine, with the interface that the training loop and checkpoints need."""

    def __init__(self, engine: Any):
        self.engine, self.zero, self.adam = engine, engine.optimizer, engine.optimizer.optimizer
        # DeepSpeed reads the state of all partitions after it has stepped the first group, so create all of it now.
        for part in self.partitions():
            self.adam.state[part] = {key: torch.zeros_like(part) for key in MOMENTS}
            self.adam.state[part]["step"] = torch.zeros((), dtype=torch.float32, device=part.device)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.adam.param_groups

    def step(self) -> tuple[Tensor, Tensor]:
        """Clip, update and zero the gradients, as `optimization.clip_and_step` does. The engine clips, skips a step
        with non-finite gradients, and frees the gradients."""
        self.engine.step()
        norm = torch.as_tensor(self.engine.get_global_grad_norm(), dtype=torch.float32, device=self.engine.device)
        return norm, (~torch.isfinite(norm)).float()

    def partitions(self) -> list[Tensor]:
        """Return the tensors that this rank updates: flat parts of the weights of each parameter group."""
        is_stage_3 = zero_stage() == 3
        return self.zero.fp32_partitioned_groups_flat if is_stage_3 else self.zero.single_partition_of_fp32_groups

    def adopt_model_weights(self) -> None:
        """Continue from weights that were written into the model. ZeRO-2 updates copies of them."""
        self.zero.refresh_fp32_params()
        for parameter in self.engine.module.parameters():
            discard_gathered_copy(parameter)

    def state_tensors(self, parameters: list[tuple[str, nn.Parameter]]) -> dict[str, StoredTensor]:
        """Return Adam's moments and step count by the name of the weight."""
        if zero_stage() == 2:
            self.zero._lazy_init_hp_params_optimizer_state()  # DeepSpeed calls this itself in its first step.
        steps = ZeroStepCount([state["step"] for state in self.adam.state.values()])
        state: dict[str, StoredTensor] = {}
        for name, parameter in parameters:
            state |= {f"{name}.{key}": stored_moment(parameter, key) for key in MOMENTS} | {f"{name}.step": steps}
        return state
