"""Where a LeRobot dataset (v3) lies, what its files say of it, its columns of numbers: checked when it is opened."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rocket_hf.errors import UserError
from rocket_hf.hub import resolve
from rocket_hf.modeling.strict_config import nearest
from rocket_hf.teachers.cache_manifest import LOCAL


def locate(id: str) -> tuple[Path, str]:
    """Return the folder and the commit of a dataset. Of a dataset on the Hub, all files but videos are downloaded."""
    resolved = resolve(id, ["meta/*", "data/*"], repo_type="dataset", kind="dataset")
    return resolved.folder, resolved.commit or LOCAL


def download(id: str, patterns: Sequence[str]) -> None:
    """Download files of a dataset on the Hub to the folder that `locate` returns."""
    resolve(id, patterns, repo_type="dataset", kind="dataset")


@dataclass
class DatasetFiles:
    """What lerobot's own reader finds in meta/."""

    id: str
    root: Path
    meta: Any

    @property
    def lengths(self) -> np.ndarray:
        """(episodes,) frames."""
        return self.episode_column("length")

    @property
    def tasks(self) -> list[str]:
        """By number."""
        return self.meta.tasks.sort_values("task_index").index.tolist()

    def episode_column(self, name: str) -> np.ndarray:
        return self.meta.episodes.data.column(name).to_numpy()

    def camera_keys(self) -> list[str]:
        """Of color pictures; a depth map is none."""
        return [key for key in self.meta.camera_keys if key not in self.meta.depth_keys]

    def data_files(self) -> list[Path]:
        return sorted((self.root / "data").glob("*/*.parquet"))

    def address(self, name: str, revision: str) -> str:
        """Of a file on the Hub, for fsspec."""
        return f"hf://datasets/{self.id.partition('@')[0]}@{revision}/{name}"

    def video_files(self, key: str) -> tuple[list[str], np.ndarray]:
        """The names of a camera's files, and for each episode the number of its file among them."""
        places = np.stack([self.episode_column(f"videos/{key}/{part}_index") for part in ("chunk", "file")], axis=1)
        different, number = np.unique(places, axis=0, return_inverse=True)
        names = [
            self.meta.video_path.format(video_key=key, chunk_index=int(chunk), file_index=int(file))
            for chunk, file in different
        ]
        return names, number.reshape(-1)


def read_files(id: str, root: Path) -> DatasetFiles:
    """Refuses what is not a LeRobot dataset of version 3 with all its small files, which lerobot's own reader would
    look for on the Hub."""
    info_file = root / "meta" / "info.json"
    if not info_file.is_file():
        raise UserError(f"{id} is no LeRobot dataset: it has no meta/info.json")
    try:
        info = json.loads(info_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"meta/info.json of the dataset {id} cannot be read: {error}") from error
    version = str(info.get("codebase_version", "unknown"))
    if not version.startswith("v3"):
        raise UserError(
            f"the dataset {id} has the format {version}, this reads v3: convert it with "
            f"`python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id={id.partition('@')[0]}`"
        )
    if not info["total_episodes"] or not info["total_frames"]:
        raise UserError(f"the dataset {id} is empty: record at least one episode")
    for name, what in (("tasks.parquet", "tasks"), ("episodes/*/*.parquet", "table of episodes")):
        if not (tables := list((root / "meta").glob(name))):
            raise UserError(f"the dataset {id} has no {what}: meta/{name} is missing")
        for file in tables:
            parquet_columns(id, file)
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    return DatasetFiles(id, root, LeRobotDatasetMetadata(f"local/{root.name}", root=root))


def read_columns(id: str, files: Sequence[Path], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of several parquet files, one after the other: (rows,), or (rows, numbers) of vectors."""
    if not files:
        raise UserError(f"the dataset {id} is incomplete: its parquet files are missing")
    known = parquet_columns(id, files[0])
    for name in names:
        if name not in known:
            raise UserError(f"the dataset {id} has no column {name!r}: {nearest(name, known)}")
    tables = []
    for file in files:
        parquet_columns(id, file)
        tables.append(pq.read_table(file, columns=list(names)))
    table = pa.concat_tables(tables)
    return {name: to_numpy(id, name, table[name]) for name in names}


def parquet_columns(id: str, file: Path) -> list[str]:
    """The names of a file's columns, read from its end, which is what a file that was cut short lacks."""
    try:
        return pq.read_schema(file).names
    except (pa.ArrowInvalid, OSError) as error:
        name = "/".join(file.parts[-3:])
        raise UserError(f"the file {name} of the dataset {id} cannot be read: copy or record it again") from error


def to_numpy(id: str, name: str, column: pa.ChunkedArray) -> np.ndarray:
    if column.null_count:
        raise UserError(f"the column {name!r} of {id} has {column.null_count} missing values")
    if not isinstance(column.type, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
        return column.to_numpy()
    pieces = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    flat = np.concatenate(pieces)
    if len(flat) % len(column):
        raise UserError(f"the rows of the column {name!r} of {id} differ in length")
    return flat.reshape(len(column), -1)
