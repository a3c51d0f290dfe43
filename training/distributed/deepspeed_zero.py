"""DeepSpeed's ZeRO-2 and ZeRO-3: its engine, and where it keeps weights and moments, in terms of the other placements.

A configuration of accelerate's asks for it, by variables. Accelerate itself is not told: it would leave the engine out
on CPUs, and on GPUs decide when a step ends. So one way is taken, and tested, on both.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch import distributed as ranks

from rocket_hf.errors import UserError

ASKED = "ACCELERATE_USE_DEEPSPEED"
SETTING = "ACCELERATE_DEEPSPEED_{}"
MOMENTS = ("exp_avg", "exp_avg_sq")
KEPT_WHOLE = 100_000  # ZeRO-3 leaves weights of at most so many numbers gathered


def zero_stage() -> int | None:
    """2 or 3, or None where the configuration does not ask for DeepSpeed."""
    if os.environ.get(ASKED, "false").lower() != "true":
        return None
    return int(os.environ.get(SETTING.format("ZERO_STAGE"), "2"))


@contextmanager
def hidden_from_accelerate() -> Iterator[None]:
    asked = os.environ.pop(ASKED, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[ASKED] = asked


def check_zero(quantize: bool) -> None:
    """What of a configuration, or beside it, this engine does not do."""
    stage = zero_stage()
    if stage not in (2, 3):
        raise UserError(f"deepspeed_config: zero_stage is 2 or 3, not {stage}: ddp.yaml shards nothing")
    if os.environ.get(SETTING.format("CONFIG_FILE"), "none") != "none":
        raise UserError("leave deepspeed_config_file out of the configuration: the recipe says what it would say")
    for what in ("OFFLOAD_OPTIMIZER_DEVICE", "OFFLOAD_PARAM_DEVICE"):
        if os.environ.get(SETTING.format(what), "none") != "none":
            raise UserError(
                f"deepspeed_config: {what.lower()} is none here: to offload take fsdp2.yaml with fsdp_offload_params"
            )
    if quantize and stage == 3:
        raise UserError("run.quantize needs whole weights, which ZeRO-3 does not leave: take zero2.yaml")
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "the configuration asks for DeepSpeed, which is not installed: `pip install 'rocket-hf[deepspeed]'`, "
            "or take training/accelerate_configs/fsdp2.yaml, which shards as ZeRO-3 does"
        )


def deepspeed(device: torch.device) -> ModuleType:
    """The library, on the device that accelerate has chosen and silent but for warnings."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    library = importlib.import_module("deepspeed")
    library.utils.logger.setLevel("WARNING")
    if device.type == "cpu":  # where it would compile a sum of its own, though gloo has one
        library.ops.__compatible_ops__ = {}
    return library


def start_engine(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float | None
) -> nn.Module:
    """The model in DeepSpeed's engine, which takes the optimizer's weights apart.

    Weights stay float32 as elsewhere, and autocast computes in bfloat16. ZeRO-3 also moves them in bfloat16, since what
    it gathered in float32 would be copied for every layer; ZeRO-2 adds up gradients in float32."""
    low = accelerator.mixed_precision == "bf16"
    stage = zero_stage()
    config = {
        "train_micro_batch_size_per_gpu": 1,  # which DeepSpeed's own logs alone would tell
        "gradient_accumulation_steps": 1,  # the loop says which pass is the last of a step, and divides
        "gradient_clipping": clip_norm or 0.0,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": KEPT_WHOLE},
        "torch_autocast": {"enabled": low, "dtype": "bfloat16"}
        | ({} if stage == 3 else {"lower_precision_safe_modules": []}),
        "steps_per_print": 2**62,
    }
    return deepspeed(accelerator.device).initialize(model=model, optimizer=optimizer, config=config)[0]


def end_recording(engine: Any) -> None:
    """ZeRO-3 notes which weight a step needs when, so as to gather it in time; other passes are no part of that, and
    would make each later step search through them."""
    engine.optimizer.parameter_offload.get_param_coordinator().reset_step()


class EngineOptimizer:
    """What the loop and the checkpoints need of the optimizer inside the engine."""

    def __init__(self, engine: Any):
        self.engine, self.zero, self.adam = engine, engine.optimizer, engine.optimizer.optimizer
        for part in self.parts():  # before DeepSpeed, which looks at all of them after it has stepped one group
            self.adam.state[part] = {key: torch.zeros_like(part) for key in MOMENTS}
            self.adam.state[part]["step"] = torch.zeros((), dtype=torch.float32, device=part.device)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.adam.param_groups

    def update(self) -> tuple[Tensor, Tensor]:
        """As `optimization.update`; the engine clips, leaves out a step that is not finite, and forgets gradients."""
        self.engine.step()
        norm = torch.as_tensor(self.engine.get_global_grad_norm(), dtype=torch.float32, device=self.engine.device)
        return norm, (~torch.isfinite(norm)).float()

    def parts(self) -> list[Tensor]:
        """What this rank steps: flat parts of the weights of each group."""
        stage_3 = zero_stage() == 3
        return self.zero.fp32_partitioned_groups_flat if stage_3 else self.zero.single_partition_of_fp32_groups

    def adopt_weights(self) -> None:
        """Goes on from the weights that were written into the model. ZeRO-2 steps copies of them."""
        self.zero.refresh_fp32_params()
        for parameter in self.engine.module.parameters():
            forget_whole(parameter)

    def state(self, trained: list[tuple[str, nn.Parameter]]) -> "dict[str, Place]":
        """Adam's moments and its count of steps, by the name of the weight, as places to read and write."""
        if zero_stage() == 2:
            self.zero._lazy_init_hp_params_optimizer_state()  # which it does itself once it has stepped
        steps = StepCount([state["step"] for state in self.adam.state.values()])
        state: dict[str, Place] = {}
        for name, parameter in trained:
            state |= {f"{name}.{key}": moment(parameter, key) for key in MOMENTS} | {f"{name}.step": steps}
        return state


# Places of tensors that lie in parts on the ranks. All ranks read one together.


@dataclass
class Shard:
    """ZeRO-3's: each rank has an equal part of the flat tensor, the last one with padding."""

    part: Tensor
    shape: torch.Size

    def whole(self) -> Tensor:
        every = self.part.new_empty(self.part.numel() * ranks.get_world_size())
        ranks.all_gather_into_tensor(every, self.part.detach().contiguous())
        return every[: self.shape.numel()].view(self.shape)

    def copy_(self, value: Tensor) -> None:
        start = self.part.numel() * ranks.get_rank()
        mine = value.flatten()[start : start + self.part.numel()]
        self.part[: mine.numel()].copy_(mine)


@dataclass
class Fragments:
    """ZeRO-2's, of a moment: it may begin on one rank and end on the next."""

    parameter: nn.Parameter
    key: str

    @property
    def shape(self) -> torch.Size:
        return self.parameter.shape

    def whole(self) -> Tensor:
        return tensor_fragment().safe_get_full_optimizer_state(self.parameter, self.key)

    def copy_(self, value: Tensor) -> None:
        value = value.to(self.parameter.device)
        tensor_fragment().safe_set_full_optimizer_state(self.parameter, value, self.key)


@dataclass
class StepCount:
    """Adam's, which is the same for every weight and kept once per part."""

    counts: list[Tensor]
    shape = torch.Size()

    def whole(self) -> Tensor:
        return self.counts[0].clone()

    def copy_(self, value: Tensor) -> None:
        for count in self.counts:
            count.copy_(value)


Place = Tensor | Shard | Fragments | StepCount


def tensor_fragment() -> ModuleType:
    return importlib.import_module("deepspeed.utils.tensor_fragment")


def moment(parameter: Any, key: str) -> Shard | Fragments:
    if not in_shards(parameter):
        return Fragments(parameter, key)
    return Shard(tensor_fragment().safe_get_local_optimizer_state(parameter, key), parameter.ds_shape)


def in_shards(tensor: Tensor) -> bool:
    """Whether ZeRO-3 keeps it in shards (FSDP2's are DTensors instead)."""
    return "ds_tensor" in vars(tensor)


def own_part(parameter: Any) -> Tensor:
    """What this rank has of a weight: all of it, a DTensor, or ZeRO-3's flat shard."""
    return parameter.ds_tensor.data if in_shards(parameter) else parameter.detach()


def place_of(parameter: Any, part: Tensor | None = None) -> Tensor | Shard:
    """Where the weight is, or `part` of something that lies on the ranks as the weight does."""
    part = own_part(parameter) if part is None else part
    return Shard(part, parameter.ds_shape) if in_shards(parameter) else part


def forget_whole(parameter: Any) -> None:
    """After its shards were changed: ZeRO-3 keeps small weights gathered."""
    if in_shards(parameter):
        parameter.partition()
