"""Description of the robot that recorded a LeRobot dataset, and its comparison with the robot of a policy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.robot_adaptation import LIMITED_SETTINGS
from rocket_hf.modeling.strict_config import suggest_name

from ..recipe import DataConfig, DatasetConfig
from .dimensions import VectorDescription, common_vector, find_places
from .frame_table import describe_vector
from .lerobot_data import camera_name
from .lerobot_files import DatasetFiles, locate_dataset, read_dataset_files
from .resampling import is_same_rate

TEXT_SETTINGS = ("state_names", "action_names", "example_task", "datasets")
OTHER_POLICY = "start from a policy that pads them (pi0, pi0.5 or SmolVLA)"


@dataclass(frozen=True)
class DatasetDescription:
    """Robot and size of a dataset, from its metadata."""

    name: str
    frames: int
    fps: float
    cameras: list[str]
    task: str
    state: VectorDescription
    action: VectorDescription


def describe_datasets(configs: Sequence[DatasetConfig]) -> list[DatasetDescription]:
    descriptions = []
    for number, config in enumerate(configs):
        files = read_dataset_files(config.id, locate_dataset(config.id)[0])
        descriptions.append(
            DatasetDescription(
                files.name,
                int(files.lengths.sum()),
                float(files.meta.fps),
                [camera_name(key) for key in files.camera_keys()],
                files.tasks[0],
                *(read_vector(files, config, number, part) for part in ("state", "action")),
            )
        )
    return descriptions


def read_robot_from_dataset(config: DatasetConfig, policy: RocketConfig) -> dict[str, Any]:
    """Return the robot of one dataset, as fields of a recipe's `robot` section."""
    return read_robot_from_datasets(DataConfig([config]), policy)


def read_robot_from_datasets(data: DataConfig, policy: RocketConfig) -> dict[str, Any]:
    """Return the robot of a recipe's datasets, as fields of its `robot` section."""
    return robot_of(describe_datasets(data.datasets), data, policy)


def robot_of(datasets: Sequence[DatasetDescription], data: DataConfig, policy: RocketConfig) -> dict[str, Any]:
    """Return cameras, dimensions, their names, rate and a task of datasets, as fields of a recipe's `robot` section.

    Cameras have their short names; those that the policy has too come first, in the policy's order. If a dataset maps
    its cameras, the policy's cameras stay. A mixture has the cameras and dimensions of all its datasets, and the task
    of the first one. Its rate is unknown if it mixes several.
    """
    robot: dict[str, Any] = {}
    if not any(config.cameras for config in data.datasets):
        cameras = list(dict.fromkeys(camera for each in datasets for camera in each.cameras))
        shared = [camera for camera in policy.cameras if camera in cameras]
        robot["cameras"] = shared + [camera for camera in cameras if camera not in shared]
    for part in ("state", "action"):
        common = common_vector([getattr(each, part) for each in datasets])
        check_same_dimensions(part, datasets, common, policy)
        robot[f"{part}_dim"], robot[f"{part}_names"] = common.dim, common.names
    robot |= {"fps": common_rate(datasets, data), "example_task": datasets[0].task}
    robot["datasets"] = [each.name for each in datasets]
    return {name: value for name, value in robot.items() if value is not None}


def read_vector(files: DatasetFiles, config: DatasetConfig, number: int, part: str) -> VectorDescription:
    """Return the dimensions of the "state" or "action" column of a dataset."""
    key = getattr(config, part)
    if key not in files.meta.features:
        raise UserError(
            f"the dataset {files.id} has no column {key!r}: set the column of its {part} with "
            f"--set data.datasets.{number}.{part}=KEY; {suggest_name(key, files.meta.features)}"
        )
    return describe_vector(config, files, part, int(files.meta.features[key]["shape"][0]))


# Checks of mixtures


def common_rate(datasets: Sequence[DatasetDescription], data: DataConfig) -> float | None:
    """Return the control rate of a mixture, or None if it mixes several as they are."""
    if data.resample is not None:
        return data.resample
    if all(is_same_rate(each.fps, datasets[0].fps) for each in datasets):
        return datasets[0].fps
    if data.allow_rates:
        return None
    listed, lowest = ", ".join(f"{each.name} {each.fps:g} Hz" for each in datasets), min(each.fps for each in datasets)
    raise UserError(
        f"the datasets have different control rates, so their action chunks span different times: {listed}; resample "
        f"all of them with --set data.resample={lowest:g}, or mix them as they are with --set data.allow_rates=true"
    )


def check_same_dimensions(
    part: str, datasets: Sequence[DatasetDescription], common: VectorDescription, policy: RocketConfig
) -> None:
    """Raise a UserError if dimensions differ and the policy has layers of their size, so that it cannot pad them."""
    vectors = [getattr(each, part) for each in datasets]
    is_read = part == "action" or policy.policy_config.reads_state
    pads = getattr(policy.policy_config, f"max_{part}_dim") is not None
    if pads or not is_read or all(vector.dim == common.dim for vector in vectors):
        return
    has_names = all(vector.names for vector in vectors) and len({vector.dim for vector in vectors}) == 1
    listed = "; ".join(
        f"{each.name} {', '.join(vector.names) if has_names else vector.dim}"
        for each, vector in zip(datasets, vectors, strict=True)
    )
    renaming = f", name equal dimensions alike with data.datasets.N.{part}_names" if has_names else ""
    raise UserError(
        f"the datasets have different {part} dimensions, which a policy of the family "
        f"{policy.policy_config.model_type} cannot pad: {listed}; train one policy per robot{renaming}, or "
        f"{OTHER_POLICY}"
    )


# Comparisons for display


def format_mixture(
    datasets: Sequence[DatasetDescription], robot: Mapping[str, Any], resample: float | None
) -> list[str]:
    """Return a table of the datasets, and one of the dimensions that not all of them have and name alike.

    Return nothing for one dataset, unless it is resampled to the rate `resample`.
    """
    if not datasets or (len(datasets) == 1 and resample is None):
        return []
    rows = [("dataset", "frames", "fps", "state_dim", "action_dim")]
    for each in datasets:
        resampled = f" -> {resample:g}" if resample is not None and not is_same_rate(resample, each.fps) else ""
        dims = (str(each.state.dim), str(each.action.dim))
        rows.append((format_value(each.name), f"{each.frames:,}", f"{each.fps:g}{resampled}", *dims))
    lines = format_table(rows)
    for part in ("state", "action"):
        vectors = [getattr(each, part) for each in datasets]
        if any(vector != vectors[0] for vector in vectors):
            common = VectorDescription.of(robot[f"{part}_dim"], robot.get(f"{part}_names"))
            columns = [dimension_column(vector, common) for vector in vectors]
            head = (f"{part} dimension", *(format_value(each.name) for each in datasets))
            numbers = [str(number) for number in range(common.dim)]
            lines += format_table([head, *zip(numbers, *columns, strict=True)])
    return lines


def dimension_column(vector: VectorDescription, common: VectorDescription) -> list[str]:
    """Return what a dataset has at each place of the policy's vector: a name, "unnamed", or "-" for nothing."""
    column = ["-"] * common.dim
    for index, place in enumerate(find_places(vector, common)):
        if place < common.dim:
            column[place] = format_value(vector.names[index]) if vector.names else "unnamed"
    return column


def format_table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def format_robot_comparison(policy: RocketConfig, robot: Mapping[str, Any]) -> list[str]:
    """Return a table with the policy's robot, the dataset's robot and the limits of the backbone, then the names and
    the task, with those of the policy if it has others."""
    rows = [("", "policy", "dataset", "maximum")]
    for name in (*LIMITED_SETTINGS, "fps"):
        value, limit = getattr(policy, name), getattr(policy.policy_config, f"max_{name}", None)
        new = robot.get(name, value)
        rows.append((name, format_value(value), format_value(new), "-" if limit is None else str(limit)))
    lines = format_table(rows)
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
