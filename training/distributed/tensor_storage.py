"""Tensors that may be split over the ranks: read in one piece, written in one piece, or used as this rank stores them.

A tensor is stored whole on each rank (one process, DDP), as a DTensor (FSDP2), or in one of DeepSpeed's layouts (ZeRO).
"""

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as ranks
from torch.distributed.tensor import DTensor, distribute_tensor


class ZeroTensor(ABC):
    """A tensor that DeepSpeed stores in parts on the ranks."""

    shape: torch.Size

    @abstractmethod
    def gather(self) -> Tensor:
        """Return the whole tensor. All ranks must call this."""

    @abstractmethod
    def copy_(self, value: Tensor) -> None:
        """Overwrite this rank's part with its part of `value`, the whole tensor."""


StoredTensor = Tensor | ZeroTensor


def stored_tensor(parameter: Any, part: Tensor | None = None) -> StoredTensor:
    """Return a weight as it is stored, or `part` of another tensor that is split over the ranks like the weight."""
    part = local_part(parameter) if part is None else part
    return ZeroShard(part, parameter.ds_shape) if is_zero_shard(parameter) else part


def local_part(parameter: Any) -> Tensor:
    """Return what this rank stores of a weight: the whole tensor, a DTensor, or the flat shard of ZeRO-3."""
    return parameter.ds_tensor.data if is_zero_shard(parameter) else parameter.detach()


def gather_tensor(stored: StoredTensor) -> Tensor:
    """Return the whole tensor on the CPU. All ranks must call this."""
    if isinstance(stored, Tensor):
        stored = stored_tensor(stored)
    if isinstance(stored, DTensor):
        return stored.full_tensor().cpu()
    return (stored if isinstance(stored, Tensor) else stored.gather()).cpu()


def overwrite_tensor(stored: StoredTensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be split over the ranks."""
    if isinstance(stored, DTensor):
        value = distribute_tensor(value.to(stored.device), stored.device_mesh, stored.placements)
    stored.copy_(value)


def discard_gathered_copy(parameter: Any) -> None:
    """Free the gathered copy of a weight whose shards have changed: ZeRO-3 keeps one of each small weight."""
    if is_zero_shard(parameter):
        parameter.partition()


# DeepSpeed's layouts


def is_zero_shard(tensor: Tensor) -> bool:
    """Return whether ZeRO-3 stores this weight in shards. (The shards of FSDP2 are DTensors instead.)"""
    return "ds_tensor" in vars(tensor)


@dataclass
class ZeroShard(ZeroTensor):
    """A tensor under ZeRO-3: each rank stores an equal part of the flat tensor, the last rank with padding."""

    part: Tensor
    shape: torch.Size

    def gather(self) -> Tensor:
        parts = self.part.new_empty(self.part.numel() * ranks.get_world_size())
        ranks.all_gather_into_tensor(parts, self.part.detach().contiguous())
        return parts[: self.shape.numel()].view(self.shape)

    def copy_(self, value: Tensor) -> None:
        start = self.part.numel() * ranks.get_rank()
        part = value.flatten()[start : start + self.part.numel()]
        self.part[: part.numel()].copy_(part)


@dataclass
class ZeroFragment(ZeroTensor):
    """An optimizer moment under ZeRO-2: it may begin on one rank and end on the next."""

    parameter: nn.Parameter
    key: str

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return self.parameter.shape

    def gather(self) -> Tensor:
        return tensor_fragment().safe_get_full_optimizer_state(self.parameter, self.key)

    def copy_(self, value: Tensor) -> None:
        value = value.to(self.parameter.device)
        tensor_fragment().safe_set_full_optimizer_state(self.parameter, value, self.key)


@dataclass
class ZeroStepCount(ZeroTensor):
    """Adam's step count under ZeRO: equal for all weights, stored once per parameter partition."""

    counts: list[Tensor]
    shape = torch.Size()

    def gather(self) -> Tensor:
        return self.counts[0].clone()

    def copy_(self, value: Tensor) -> None:
        for count in self.counts:
            count.copy_(value)


def stored_moment(parameter: Any, key: str) -> ZeroTensor:
    """Return a moment of Adam as ZeRO stores it; `key` is its name in the optimizer's state."""
    if not is_zero_shard(parameter):
        return ZeroFragment(parameter, key)
    return ZeroShard(tensor_fragment().safe_get_local_optimizer_state(parameter, key), parameter.ds_shape)


def tensor_fragment() -> ModuleType:
    return importlib.import_module("deepspeed.utils.tensor_fragment")
