"""Reader of VGGT's weights in the public layout: loads the aggregator strictly and skips the geometry heads."""

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
    """Load the aggregator. Also return the names of the tensors that it does not use. Memory holds the weights once."""
    checkpoint = Checkpoint(path.parent)
    if path.suffix == ".safetensors":
        checkpoint.add_safetensors(path)
    else:
        checkpoint.add_pickle(path, prefix="")
    with torch.device("meta"):
        aggregator = VggtAggregator(config)
    expected = {PREFIX + name: tuple(tensor.shape) for name, tensor in aggregator.state_dict().items()}
    found = {name: entry.shape for name, entry in checkpoint.entries.items() if not name.startswith(HEADS)}
    check_shapes(path.name, found, expected)
    tensors = read_aggregator_tensors(path, list(expected), dtype, device)
    aggregator.load_state_dict({name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}, assign=True)
    return aggregator, sorted(checkpoint.entries.keys() - found.keys())


def check_shapes(file: str, found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> None:
    if missing := sorted(expected.keys() - found.keys()):
        raise UserError(f"{file} lacks {missing[0]} and {len(missing) - 1} more tensors of a VGGT")
    if unknown := sorted(found.keys() - expected.keys()):
        raise UserError(f"{file} contains {unknown[0]}, which is not part of a VGGT of the sizes in config.json")
    for name, shape in expected.items():
        if found[name] != shape:
            raise UserError(f"{name} in {file} has shape {found[name]}, but the sizes in config.json require {shape}")


def read_aggregator_tensors(
    path: Path, names: list[str], dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Read the tensors one by one, each directly to its device and dtype."""
    if path.suffix != ".safetensors":
        tensors = load_pickle(path)  # memory-mapped, so nothing is read yet
        return {name: tensors[name].to(device, dtype) for name in names}
    with safe_open(path, "pt", device=str(device)) as file:
        return {name: file.get_tensor(name).to(dtype) for name in names}
