"""Files of a LeRobot dataset (v3): location, metadata and numeric columns, checked when they are opened."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rocket_hf.errors import UserError
from rocket_hf.files import expand_user
from rocket_hf.hub import resolve
from rocket_hf.modeling.strict_config import suggest_name
from rocket_hf.sims.recording_journal import is_killed_recording
from rocket_hf.teachers.cache_manifest import LOCAL


def locate_dataset(id: str) -> tuple[Path, str]:
    """Return the folder and the commit of a dataset; a dataset on the Hub is downloaded, without its videos."""
    resolved = resolve(id, ["meta/*", "data/*"], repo_type="dataset", kind="dataset")
    return resolved.folder, resolved.commit or LOCAL


def download_files(id: str, patterns: Sequence[str]) -> None:
    """Download files of a dataset on the Hub into the folder that `locate_dataset` returns."""
    resolve(id, patterns, repo_type="dataset", kind="dataset")


@dataclass
class DatasetFiles:
    """Folder and metadata of a dataset; `meta` is lerobot's own reader of meta/."""

    id: str
    root: Path
    meta: Any

    @property
    def name(self) -> str:
        """Name for messages, configuration and cards: the Hub id without its revision, or the name of the folder."""
        return self.root.resolve().name if expand_user(self.id).is_dir() else self.id.partition("@")[0]

    @property
    def lengths(self) -> np.ndarray:
        """Number of frames of each episode, (episodes,)."""
        return self.episode_column("length")

    @property
    def tasks(self) -> list[str]:
        """Texts of the tasks, by task index."""
        tasks = self.meta.tasks.sort_values("task_index").index.tolist()
        if not all(isinstance(task, str) for task in tasks):
            raise UserError(f"meta/tasks.parquet of the dataset {self.id} has no texts: download or record it again")
        return tasks

    def episode_column(self, name: str) -> np.ndarray:
        """Return a column of the table of episodes, (episodes,)."""
        table = self.meta.episodes.data
        if name not in table.column_names:
            raise UserError(f"meta/episodes of the dataset {self.id} has no column {name!r}: record it again")
        return table.column(name).to_numpy()

    def camera_keys(self) -> list[str]:
        """Return the keys of the color cameras; depth maps are not included."""
        return [key for key in self.meta.camera_keys if key not in self.meta.depth_keys]

    def vector_names(self, key: str) -> list[str] | None:
        """Return the name of each dimension of a vector column, or None if the dataset does not name all of them.

        Some converted datasets keep the names in a table, such as {"motors": [...]}.
        """
        feature = self.meta.features.get(key, {})
        names = feature.get("names")
        if isinstance(names, dict) and len(names) == 1:
            names = next(iter(names.values()))
        is_complete = isinstance(names, list) and [len(names)] == list(feature["shape"])
        return [str(name) for name in names] if is_complete else None

    def data_files(self) -> list[Path]:
        return sorted((self.root / "data").glob("*/*.parquet"))

    def hub_url(self, name: str, revision: str) -> str:
        """Return the fsspec address of a file on the Hub."""
        return f"hf://datasets/{self.id.partition('@')[0]}@{revision}/{name}"

    def video_files(self, key: str) -> tuple[list[str], np.ndarray]:
        """Return the names of a camera's video files and, for each episode, the index of its file among them."""
        locations = np.stack([self.episode_column(f"videos/{key}/{part}_index") for part in ("chunk", "file")], axis=1)
        files, file_of_episode = np.unique(locations, axis=0, return_inverse=True)
        names = [
            self.meta.video_path.format(video_key=key, chunk_index=int(chunk), file_index=int(file))
            for chunk, file in files
        ]
        return names, file_of_episode.reshape(-1)


def read_dataset_files(id: str, root: Path) -> DatasetFiles:
    """Open the metadata of a dataset. Incomplete datasets are refused.

    lerobot's own reader would search the Hub for missing files, even those of a local dataset.
    """
    if is_killed_recording(root):
        raise UserError(
            f"the dataset {id} is incomplete, because its recording was killed: run the same `rocket-hf simulate` "
            "command again, which keeps all recorded episodes"
        )
    check_info(id, root / "meta" / "info.json")
    for name, content in (("tasks.parquet", "tasks"), ("episodes/*/*.parquet", "table of episodes")):
        if not (tables := list((root / "meta").glob(name))):
            raise UserError(f"the dataset {id} has no {content}: meta/{name} is missing, download or record it again")
        for file in tables:
            read_column_names(id, file)
    from datasets.exceptions import DatasetsError
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    try:
        meta = LeRobotDatasetMetadata(f"local/{root.name}", root=root)
    except DatasetsError as error:  # the files that its library writes to its cache
        raise UserError(
            f"lerobot cannot read the metadata of the dataset {id}, meta/*: {first_line(error.__cause__ or error)}; "
            "free some disk space, or download or record it again"
        ) from error
    except (pa.ArrowException, AttributeError, KeyError, OSError, TypeError, ValueError) as error:  # damaged metadata
        raise UserError(
            f"lerobot cannot read the metadata of the dataset {id}, meta/*: {type(error).__name__}: "
            f"{first_line(error)}; download or record it again"
        ) from error
    return DatasetFiles(id, root, meta)


def check_info(id: str, file: Path) -> None:
    if not file.is_file():
        raise UserError(f"{id} is not a LeRobot dataset: it has no meta/info.json")
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
        version = str(info.get("codebase_version", "unknown"))
        is_empty = not info.get("total_episodes") or not info.get("total_frames")
    except (AttributeError, OSError, RecursionError, ValueError) as error:  # AttributeError: it is no JSON object
        raise UserError(
            f"meta/info.json of the dataset {id} cannot be read: {first_line(error)}; download or record it again"
        ) from error
    if not version.startswith("v3"):
        raise UserError(
            f"the dataset {id} has format {version}, but only v3 is supported: convert it with "
            f"`python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id={id.partition('@')[0]}`"
        )
    if is_empty:
        raise UserError(f"the dataset {id} is empty: record at least one episode")
    if reason := invalid_info(info):
        raise UserError(f"meta/info.json of the dataset {id} is damaged: {reason}; download or record it again")


def invalid_info(info: dict[str, Any]) -> str:
    """Return what is wrong with the values that are read from meta/info.json, or an empty text."""
    fps, features = info.get("fps"), info.get("features")
    if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps < float("inf"):
        return f"fps must be a number above 0, got {fps!r}"
    for name in ("total_episodes", "total_frames", "total_tasks"):
        if type(info.get(name)) is not int or info[name] < 1:
            return f"{name} must be an integer above 0, got {info.get(name)!r:.80}"
    if not isinstance(features, dict):
        return f"features must be a table of columns, got {features!r:.80}"
    for name, feature in features.items():
        shape = feature.get("shape") if isinstance(feature, dict) else None
        is_valid = isinstance(shape, list) and shape and all(type(size) is int and size > 0 for size in shape)
        if not is_valid or not isinstance(feature.get("dtype"), str):
            return f"the column {name!r} needs a dtype and a shape, got {feature!r:.80}"
    return ""


def check_frames(files: DatasetFiles, index: np.ndarray, episode_index: np.ndarray) -> None:
    """Check that the rows of the data files are the frames of all episodes, in order."""
    episodes = np.repeat(np.arange(len(files.lengths)), files.lengths)
    if not (np.array_equal(index, np.arange(len(episodes))) and np.array_equal(episode_index, episodes)):
        raise UserError(
            f"the dataset {files.id} is incomplete or out of order: its data files do not contain the "
            f"{len(episodes)} frames listed in meta/episodes, download or record it again"
        )


def read_columns(id: str, files: Sequence[Path], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read numeric columns of several parquet files, concatenated: (rows,), or (rows, dim) for vectors."""
    if not files:
        raise UserError(f"the dataset {id} is incomplete: data/*/*.parquet is missing, download or record it again")
    known = read_column_names(id, files[0])
    for name in names:
        if name not in known:
            raise UserError(f"the dataset {id} has no column {name!r}: {suggest_name(name, known)}")
    tables = []
    for file in files:
        try:
            tables.append(pq.read_table(file, columns=list(names)))
        except (pa.ArrowException, OSError) as error:
            raise unreadable_file(id, file) from error
    try:
        table = pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise UserError(
            f"the data files of the dataset {id} differ in their columns: {first_line(error)}; record it again"
        ) from error
    return {name: to_numpy(id, name, table[name]) for name in names}


def read_column_names(id: str, file: Path) -> list[str]:
    """Return the names of a file's columns.

    They are stored at the end of the file, so this also detects a truncated file.
    """
    try:
        return pq.read_schema(file).names
    except (pa.ArrowException, OSError) as error:
        raise unreadable_file(id, file) from error


def unreadable_file(id: str, file: Path) -> UserError:
    return UserError(
        f"the file {'/'.join(file.parts[-3:])} of the dataset {id} cannot be read: download or record it again"
    )


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def to_numpy(id: str, name: str, column: pa.ChunkedArray) -> np.ndarray:
    """Convert a column without missing values to numbers: (rows,), or (rows, dim) for vectors."""
    if column.null_count:
        raise UserError(f"the column {name!r} of {id} has {column.null_count} missing values: record the dataset again")
    if not isinstance(column.type, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
        return require_numbers(id, name, column.to_numpy())
    pieces = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    flat = require_numbers(id, name, np.concatenate(pieces))
    if len(flat) % len(column):
        raise UserError(f"the rows of the column {name!r} of {id} differ in length: record the dataset again")
    return flat.reshape(len(column), -1)


def require_numbers(id: str, name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "biuf":
        raise UserError(f"the column {name!r} of {id} does not hold numbers or vectors: choose another column")
    return values
