"""A tiny VGGT teacher for tests."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from rocket_hf.teachers.vggt import VggtAggregator, VggtConfig


def tiny_vggt_config(**changes: Any) -> VggtConfig:
    """Return the configuration of a VGGT with four layers of 32 channels, for 6 x 6 patches of 14 pixels."""
    sizes: dict[str, Any] = {"img_size": 84, "embed_dim": 16, "depth": 4, "num_heads": 2}
    return VggtConfig(**(sizes | {"patch_embed_depth": 2, "patch_embed_heads": 2} | changes))


def write_tiny_vggt(folder: Path, license: str | None = "apache-2.0", **changes: Any) -> Path:
    """Write a checkpoint in VGGT's public layout, with weights drawn from a fixed seed."""
    config = tiny_vggt_config(**changes)
    weights = VggtAggregator(config).state_dict()
    draw = torch.Generator().manual_seed(0)
    tensors = {
        f"aggregator.{name}": torch.randn(weight.shape, generator=draw) / 2 for name, weight in sorted(weights.items())
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors | {"camera_head.token": torch.zeros(8)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    if license is not None:
        (folder / "README.md").write_text(f"---\nlicense: {license}\n---\n")
    return folder
