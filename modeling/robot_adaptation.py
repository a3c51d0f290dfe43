"""Adaptation of a policy to another robot: other cameras, state, actions and chunk size with the same backbone.

Layers whose sizes do not depend on the robot keep their weights. The other layers are new and must be trained; their
names are reported.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from torch import nn

from .configuration_rocket import RocketConfig
from .errors import UserError
from .strict_config import suggest_name

ROBOT_FILE = "robot.json"  # in an adapter's folder, beside its weights
ROBOT_SETTINGS = (
    "cameras", "state_dim", "action_dim", "state_names", "action_names", "fps", "example_task", "datasets",
    "chunk_size", "state_normalization", "action_normalization",
)  # fmt: skip
# Facts about the training data, which are unknown for a robot with other cameras or dimensions unless they are given.
TRAINING_DATA_SETTINGS = ("fps", "example_task", "datasets")
LIMITED_SETTINGS = ("cameras", "state_dim", "action_dim", "chunk_size")  # a backbone may have a maximum of each


def robot_settings(config: RocketConfig) -> dict[str, Any]:
    """Return the settings of a configuration that describe the robot, by name."""
    values = config.to_dict()
    return {name: values[name] for name in ROBOT_SETTINGS}


def read_robot(source: str | Path, revision: str | None = None) -> dict[str, Any]:
    """Read the settings of an adapter's robot from its folder or Hub repository."""
    path = Path(source) / ROBOT_FILE
    if not Path(source).is_dir():
        with suppress(RemoteEntryNotFoundError):  # reported like a folder without the file
            path = Path(hf_hub_download(str(source), ROBOT_FILE, revision=revision))
    if not path.is_file():
        raise UserError(
            f"{source} does not describe its robot: it has no {ROBOT_FILE}; pass the robot as a dict instead"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): download or publish the adapter again") from error


def config_for_robot(config: RocketConfig, robot: Mapping[str, Any]) -> RocketConfig:
    """Return the configuration of the same backbone for another robot.

    Names of dimensions and facts about the training data that the other robot makes invalid, and that `robot` does not
    give, become None. One `UserError` lists everything in which the robot exceeds the limits of the backbone.
    """
    for name in robot:
        if name not in ROBOT_SETTINGS:
            raise UserError(f"a robot has no setting {name!r}: {suggest_name(name, ROBOT_SETTINGS)}")
    sizes = {name: len(robot[name]) if name == "cameras" else robot[name] for name in LIMITED_SETTINGS if name in robot}
    limits = {name: getattr(config.policy_config, f"max_{name}") for name in sizes}
    exceeded = [
        f"{name} is {sizes[name]}, at most {limit}"
        for name, limit in limits.items()
        if limit is not None and sizes[name] > limit
    ]
    if exceeded:
        raise UserError(f"the robot exceeds the limits of this policy: {'; '.join(exceeded)}")
    outdated: dict[str, Any] = {f"{part}_names": None for part in ("state", "action") if f"{part}_dim" in robot}
    if {"cameras", "state_dim", "action_dim"} & robot.keys():
        outdated |= dict.fromkeys(TRAINING_DATA_SETTINGS)
    return type(config).from_dict(config.to_dict(), **(outdated | dict(robot)))


def find_new_layers(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of the model's layers that `weights` lacks or has in another size; values are not read."""
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    return sorted({
        name.rpartition(".")[0]
        for name, tensor in model.state_dict().items()
        if name not in shapes or shapes[name] != tensor.shape
    })  # fmt: skip
