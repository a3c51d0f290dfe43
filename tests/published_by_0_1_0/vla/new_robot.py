"""A policy for another robot: other cameras, state, actions and chunks, on the same backbone.

Layers whose sizes the robot does not set keep their weights; the others are new, and named, and have to be trained.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from torch import nn

from .configuration_rocket import RocketConfig
from .strict_config import nearest

FILE = "robot.json"  # beside an adapter's weights
ROBOT = (
    "cameras", "state_dim", "action_dim", "state_names", "action_names", "chunk_size", "state_normalization",
    "action_normalization",
)  # fmt: skip
COUNTED = ("cameras", "state_dim", "action_dim", "chunk_size")


def robot_of(config: RocketConfig) -> dict[str, Any]:
    """What of a configuration is the robot's."""
    values = config.to_dict()
    return {name: values[name] for name in ROBOT}


def read_robot(source: str | Path, revision: str | None = None) -> dict[str, Any]:
    """The specification of the robot in an adapter's folder or Hub repository."""
    path = Path(source) / FILE
    if not Path(source).is_dir():
        path = Path(hf_hub_download(str(source), FILE, revision=revision))
    if not path.is_file():
        raise ValueError(f"{source} says nothing of its robot: it has no {FILE}")
    return json.loads(path.read_text(encoding="utf-8"))


def config_for_robot(config: RocketConfig, robot: Mapping[str, Any]) -> RocketConfig:
    """The same backbone with another robot's sizes; what the backbone cannot take is told side by side."""
    for name in robot:
        if name not in ROBOT:
            raise ValueError(f"a robot has no {name!r}: {nearest(name, ROBOT)}")
    sizes = {name: len(robot[name]) if name == "cameras" else robot[name] for name in COUNTED if name in robot}
    limits = {name: getattr(config.policy_config, f"max_{name}") for name in sizes}
    beyond = [
        f"{name} at most {limit} against {sizes[name]}"
        for name, limit in limits.items()
        if limit is not None and sizes[name] > limit
    ]
    if beyond:
        raise ValueError(f"this policy cannot drive that robot: {'; '.join(beyond)}")
    stale = {f"{part}_names": None for part in ("state", "action") if f"{part}_dim" in robot}
    return type(config).from_dict(config.to_dict(), **(stale | dict(robot)))


def new_layers(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> list[str]:
    """The layers of a model, on the meta device, that cannot take these weights because their sizes differ."""
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    return sorted({
        name.rpartition(".")[0]
        for name, tensor in model.state_dict().items()
        if name not in shapes or shapes[name] != tensor.shape
    })  # fmt: skip
