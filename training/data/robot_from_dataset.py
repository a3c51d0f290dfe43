"""What a LeRobot dataset tells of its robot, beside what a policy was made for."""

from collections.abc import Mapping
from typing import Any

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.robot_adaptation import COUNTED

from ..recipe import DatasetConfig
from .lerobot_data import camera_name
from .lerobot_files import locate, read_files


def read_robot_from_dataset(config: DatasetConfig, policy: RocketConfig) -> dict[str, Any]:
    """Its cameras by their short names, those of the policy first; how wide state and action are, and their names."""
    root, _ = locate(config.id)
    files = read_files(config.id, root)
    cameras = [camera_name(key) for key in files.camera_keys()]
    known = [camera for camera in policy.cameras if camera in cameras]
    robot: dict[str, Any] = {"cameras": known + [camera for camera in cameras if camera not in known]}
    for part, key in (("state", config.state), ("action", config.action)):
        if key not in files.meta.features:
            raise UserError(
                f"the dataset {config.id} has no column {key!r}: name its {part} by --set data.datasets.0.{part}=KEY"
            )
        feature = files.meta.features[key]
        robot[f"{part}_dim"] = int(feature["shape"][0])
        names = feature.get("names")
        if isinstance(names, list) and len(names) == robot[f"{part}_dim"]:
            robot[f"{part}_names"] = [str(name) for name in names]
    return robot


def side_by_side(policy: RocketConfig, robot: Mapping[str, Any]) -> list[str]:
    """The two robots and what the backbone can take, in rows."""
    rows = [("", "the policy's", "the dataset's", "at most")]
    for name in COUNTED:
        before = getattr(policy, name)
        limit = getattr(policy.policy_config, f"max_{name}")
        rows.append((name, shown(before), shown(robot.get(name, before)), "-" if limit is None else str(limit)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows
    ]


def shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list | tuple) else str(value)
