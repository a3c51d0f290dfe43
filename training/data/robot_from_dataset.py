"""Description of the robot that recorded a LeRobot dataset, and its comparison with the robot of a policy."""

from collections.abc import Mapping
from typing import Any

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.robot_adaptation import LIMITED_SETTINGS

from ..recipe import DatasetConfig
from .lerobot_data import camera_name
from .lerobot_files import locate_dataset, read_dataset_files


def read_robot_from_dataset(config: DatasetConfig, policy: RocketConfig) -> dict[str, Any]:
    """Return the cameras, dimensions and dimension names of a dataset, as fields of a recipe's `robot` section.

    Cameras have their short names; those that the policy has too come first, in the policy's order.
    """
    root, _ = locate_dataset(config.id)
    files = read_dataset_files(config.id, root)
    cameras = [camera_name(key) for key in files.camera_keys()]
    shared = [camera for camera in policy.cameras if camera in cameras]
    robot: dict[str, Any] = {"cameras": shared + [camera for camera in cameras if camera not in shared]}
    for part, key in (("state", config.state), ("action", config.action)):
        if key not in files.meta.features:
            raise UserError(
                f"the dataset {config.id} has no column {key!r}: set the column of its {part} with "
                f"--set data.datasets.0.{part}=KEY"
            )
        feature = files.meta.features[key]
        robot[f"{part}_dim"] = int(feature["shape"][0])
        names = feature.get("names")
        if isinstance(names, list) and len(names) == robot[f"{part}_dim"]:
            robot[f"{part}_names"] = [str(name) for name in names]
    return robot


def format_robot_comparison(policy: RocketConfig, robot: Mapping[str, Any]) -> list[str]:
    """Return the rows of a table with the policy's robot, the dataset's robot and the limits of the backbone."""
    rows = [("", "policy", "dataset", "maximum")]
    for name in LIMITED_SETTINGS:
        value = getattr(policy, name)
        limit = getattr(policy.policy_config, f"max_{name}")
        rows.append(
            (name, format_value(value), format_value(robot.get(name, value)), "-" if limit is None else str(limit))
        )
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows
    ]


def format_value(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list | tuple) else str(value)
