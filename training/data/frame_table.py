"""State, actions and task of every frame of a dataset, in memory, with the policy's dimensions and control rate."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket import RocketConfig

from ..recipe import DatasetConfig
from .dimensions import VectorDescription, find_places, is_subset
from .lerobot_files import DatasetFiles, check_frames, read_columns
from .resampling import action_kinds, actions_are_states, frame_times, is_same_rate, nearest_frames, resample_actions


@dataclass(frozen=True)
class MixtureEntry:
    """Place of a dataset in a mixture, and what adapts it to the other datasets."""

    number: int = 0  # index of the dataset in the recipe
    rate: float | None = None  # control rate in Hz to which the frames are resampled; None: that of the recording
    pads: bool = False  # whether the dataset may have fewer dimensions than the policy


SINGLE_DATASET = MixtureEntry()


@dataclass
class FrameTable:
    """Numeric columns of a dataset by the index of a frame.

    Frames are those of the recording, or resampled ones. Dimensions that the dataset lacks are 0 and masked.
    """

    state: Tensor  # (frames, S)
    actions: Tensor  # (frames, A)
    state_mask: Tensor  # (S,) bool, False on dimensions that the dataset lacks
    action_mask: Tensor  # (A,) bool
    task_indices: Tensor  # (frames,)
    lengths: np.ndarray  # (episodes,) number of frames
    recorded_frames: np.ndarray  # (frames,) lerobot's index of the recorded frame with the image and the state
    timestamps: np.ndarray  # (recorded frames,)


def read_frame_table(
    config: DatasetConfig, files: DatasetFiles, policy: RocketConfig, episodes: Sequence[int], entry: MixtureEntry
) -> FrameTable:
    """Read the columns of a dataset. Values of the selected episodes must be finite."""
    columns = read_sample_columns(config, files)
    state, actions = to_vectors(columns[config.state]), to_vectors(columns[config.action])
    check_finite(files, "state", state, episodes, entry.number)
    check_finite(files, "action", actions, episodes, entry.number)
    state_vector = describe_vector(config, files, "state", state.shape[1])
    action_vector = describe_vector(config, files, "action", actions.shape[1])
    lengths, frames = files.lengths, np.arange(len(state))
    if entry.rate is not None and not is_same_rate(entry.rate, files.meta.fps):
        selected = np.repeat(np.isin(np.arange(len(lengths)), list(episodes)), lengths)
        rows = torch.from_numpy(state[selected]), torch.from_numpy(actions[selected])
        holds_state = actions_are_states(state_vector.names, action_vector.names, *rows)
        kinds = action_kinds(config.action_kinds, action_vector, holds_state, config.id, entry.number)
        frames, lengths, actions = resample(lengths, actions, files.meta.fps / entry.rate, kinds)
    placed_state, state_mask = place_dimensions(config, "state", state[frames], state_vector, policy, entry.pads)
    placed_actions, action_mask = place_dimensions(config, "action", actions, action_vector, policy, entry.pads)
    return FrameTable(
        placed_state,
        placed_actions,
        state_mask,
        action_mask,
        torch.from_numpy(columns["task_index"].astype(np.int32)[frames]),
        lengths,
        frames,
        columns["timestamp"],
    )


def read_sample_columns(config: DatasetConfig, files: DatasetFiles) -> dict[str, np.ndarray]:
    names = ["index", "episode_index", "frame_index", "timestamp", "task_index"]
    columns = read_columns(config.id, files.data_files(), [*dict.fromkeys([config.state, config.action]), *names])
    check_frames(files, columns["index"], columns["episode_index"])
    largest = columns["task_index"].max()
    if largest >= len(files.tasks):
        raise UserError(
            f"the dataset {config.id} has a frame of task {largest}, but meta/tasks.parquet has only "
            f"{len(files.tasks)} tasks: download or record it again"
        )
    return columns


def to_vectors(column: np.ndarray) -> np.ndarray:
    """Return a column as float32 vectors (frames, dim)."""
    return column.reshape(len(column), -1).astype(np.float32)


def describe_vector(config: DatasetConfig, files: DatasetFiles, name: str, dim: int) -> VectorDescription:
    """Return the dimensions of the "state" or "action" of a dataset, with the recipe's names for them if it has any."""
    names = getattr(config, f"{name}_names")
    if names is not None and len(names) != dim:
        raise UserError(
            f"datasets.{name}_names of {config.id} has {len(names)} names, but its {name} has {dim} dimensions: give "
            "one name for each dimension"
        )
    return VectorDescription.of(dim, names if names is not None else files.vector_names(getattr(config, name)))


def check_finite(files: DatasetFiles, name: str, table: np.ndarray, episodes: Sequence[int], number: int) -> None:
    ends = np.cumsum(files.lengths)
    selected = set(episodes)
    for index in np.flatnonzero(~np.isfinite(table).all(axis=1)).tolist():
        episode = int(np.searchsorted(ends, index, side="right"))
        if episode in selected:
            frame = index - int(ends[episode] - files.lengths[episode])
            raise UserError(
                f"the {name} of {files.name} is not finite at episode {episode}, frame {frame}: correct the dataset, "
                f"or leave this episode out of data.datasets.{number}.episodes"
            )


def resample(
    lengths: np.ndarray, actions: np.ndarray, step: float, kinds: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Resample all episodes to frames that are `step` recorded frames apart.

    Return the recorded frame of each resampled one, the new lengths of the episodes, and the actions.
    """
    frames, resampled = [], []
    for start, length in zip(np.cumsum(lengths) - lengths, lengths, strict=True):
        times = frame_times(int(length), step)
        frames.append(start + nearest_frames(times, int(length)))
        resampled.append(resample_actions(actions[start : start + length], times, step, kinds))
    return np.concatenate(frames), np.array([len(part) for part in frames]), np.concatenate(resampled)


def place_dimensions(
    config: DatasetConfig, name: str, table: np.ndarray, vector: VectorDescription, policy: RocketConfig, pads: bool
) -> tuple[Tensor, Tensor]:
    """Return vectors (frames, policy's dimensions), 0 on those that the dataset lacks, and a mask of those it has."""
    common = VectorDescription.of(getattr(policy, f"{name}_dim"), getattr(policy, f"{name}_names"))
    if vector.dim > common.dim or (vector.dim < common.dim and not (pads or may_lack(name, vector, common, policy))):
        raise UserError(
            f"the {name} of {config.id} has {vector.dim} dimensions, the policy was made for {name}_dim={common.dim}: "
            f"set robot.{name}_dim={vector.dim} in the recipe, or adapt the policy with `rocket-hf adapt`"
        )
    places = find_places(vector, common)
    mask = torch.zeros(common.dim, dtype=torch.bool)
    mask[places] = True
    if places == list(range(common.dim)):
        return torch.from_numpy(table), mask
    placed = torch.zeros(len(table), common.dim)
    placed[:, places] = torch.from_numpy(table)
    return placed, mask


def may_lack(name: str, vector: VectorDescription, common: VectorDescription, policy: RocketConfig) -> bool:
    """Return whether a policy that pads vectors knows all dimensions of a dataset by their names."""
    pads = getattr(policy.policy_config, f"max_{name}_dim") is not None
    return pads and vector.names is not None and common.names is not None and is_subset(vector, common)
