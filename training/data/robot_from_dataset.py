"""Description of the robot that recorded a LeRobot dataset, and its comparison with the robot of a policy."""

from collections.abc import Mapping, Sequence
from typing import Any

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.robot_adaptation import LIMITED_SETTINGS
from rocket_hf.modeling.strict_config import suggest_name
from rocket_hf.teachers.cache_manifest import LOCAL

from ..recipe import DatasetConfig
from .lerobot_data import camera_name
from .lerobot_files import DatasetFiles, locate_dataset, read_dataset_files

TEXT_SETTINGS = ("state_names", "action_names", "example_task", "datasets")


def read_robot_from_dataset(config: DatasetConfig, policy: RocketConfig) -> dict[str, Any]:
    """Return the robot of one dataset, as fields of a recipe's `robot` section."""
    return read_robot_from_datasets([config], policy)


def read_robot_from_datasets(configs: Sequence[DatasetConfig], policy: RocketConfig) -> dict[str, Any]:
    """Return cameras, dimensions, their names, rate and a task of datasets, as fields of a recipe's `robot` section.

    Cameras have their short names; those that the policy has too come first, in the policy's order. If a dataset maps
    its cameras, the policy's cameras stay. A mixture has the cameras of all its datasets, and the names of the dataset
    with most dimensions; rate and task are those of the first dataset.
    """
    files, names = [], []
    for config in configs:
        root, revision = locate_dataset(config.id)
        files.append(read_dataset_files(config.id, root))
        names.append(root.resolve().name if revision == LOCAL else config.id.partition("@")[0])
    robot: dict[str, Any] = {}
    if not any(config.cameras for config in configs):
        cameras = list(dict.fromkeys(camera_name(key) for each in files for key in each.camera_keys()))
        shared = [camera for camera in policy.cameras if camera in cameras]
        robot["cameras"] = shared + [camera for camera in cameras if camera not in shared]
    for part in ("state", "action"):
        vectors = [
            read_vector(each, getattr(config, part), number, part)
            for number, (config, each) in enumerate(zip(configs, files, strict=True))
        ]
        robot[f"{part}_dim"], robot[f"{part}_names"] = max(vectors, key=lambda vector: vector[0])
    robot |= {"fps": float(files[0].meta.fps), "example_task": files[0].tasks[0], "datasets": names}
    return {name: value for name, value in robot.items() if value is not None}


def read_vector(files: DatasetFiles, key: str, number: int, part: str) -> tuple[int, list[str] | None]:
    """Return the length of a state or action column, and the name of each dimension if the dataset has names."""
    if key not in files.meta.features:
        raise UserError(
            f"the dataset {files.id} has no column {key!r}: set the column of its {part} with "
            f"--set data.datasets.{number}.{part}=KEY; {suggest_name(key, files.meta.features)}"
        )
    return int(files.meta.features[key]["shape"][0]), files.vector_names(key)


def format_robot_comparison(policy: RocketConfig, robot: Mapping[str, Any]) -> list[str]:
    """Return a table with the policy's robot, the dataset's robot and the limits of the backbone, then the names and
    the task, with those of the policy if it has others."""
    rows = [("", "policy", "dataset", "maximum")]
    for name in (*LIMITED_SETTINGS, "fps"):
        value, limit = getattr(policy, name), getattr(policy.policy_config, f"max_{name}", None)
        new = robot.get(name, value)
        rows.append((name, format_value(value), format_value(new), "-" if limit is None else str(limit)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)) for row in rows]
    for name in TEXT_SETTINGS:
        old, new = getattr(policy, name), robot.get(name)
        if new is not None:
            differs = old is not None and list(old) != list(new)
            origin = f"  (policy: {format_value(old)})" if differs else ""
            lines.append(f"{name}: {format_value(new)}{origin}")
    return [line.rstrip() for line in lines]


def format_value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join((", ".join(value) if isinstance(value, list | tuple) else str(value)).split())
