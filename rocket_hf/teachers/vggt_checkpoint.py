"""VGGT's weights from a file in the public layout: the aggregator strictly, the heads that predict geometry dropped."""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from rocket_hf.checkpoint_files import Checkpoint, load_pickle
from rocket_hf.errors import UserError

from .vggt import VggtAggregator, VggtConfig

PREFIX = "aggregator."
HEADS = ("camera_head.", "track_head.", "point_head.", "depth_head.")


def load_aggregator(
    path: Path, config: VggtConfig, dtype: torch.dtype, device: torch.device
) -> tuple[VggtAggregator, list[str]]:
    """The aggregator, and the names of the tensors that it has no use for. Memory holds its weights once."""
    checkpoint = Checkpoint(path.parent)
    if path.suffix == ".safetensors":
        checkpoint.add_safetensors(path)
    else:
        checkpoint.add_pickle(path, prefix="")
    with torch.device("meta"):
        aggregator = VggtAggregator(config)
    shapes = {PREFIX + name: tuple(tensor.shape) for name, tensor in aggregator.state_dict().items()}
    found = {name: entry.shape for name, entry in checkpoint.entries.items() if not name.startswith(HEADS)}
    check_shapes(path.name, found, shapes)
    tensors = read_tensors(path, shapes, dtype, device)
    aggregator.load_state_dict({name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}, assign=True)
    return aggregator, sorted(checkpoint.entries.keys() - found.keys())


def check_shapes(file: str, found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    for name in wanted.keys() - found.keys():
        raise UserError(f"{file} lacks {name} and {len(wanted.keys() - found.keys()) - 1} more tensors of a VGGT")
    for name in found.keys() - wanted.keys():
        raise UserError(f"{file} holds {name}, which is no part of a VGGT of the sizes in config.json")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise UserError(f"{name} in {file} is {found[name]}, the sizes in config.json make it {shape}")


def read_tensors(
    path: Path, names: dict[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """One after the other, straight to where they are wanted."""
    if path.suffix != ".safetensors":
        tensors = load_pickle(path)  # mapped into memory, not read
        return {name: tensors[name].to(device, dtype) for name in names}
    with safe_open(path, "pt", device=str(device)) as file:
        return {name: file.get_tensor(name).to(dtype) for name in names}
