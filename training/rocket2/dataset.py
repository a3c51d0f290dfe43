"""Recorded rooms in memory: every picture, what is where in it, what was done; and where each object can be seen."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from rocket_hf.errors import UserError
from rocket_hf.teachers.cache_manifest import LOCAL

from ..data.lerobot_data import check_frames
from ..data.lerobot_files import DatasetFiles, locate, read_columns, read_files

VIEW, OBJECTS = "observation.images.view", "observation.images.objects"
NUMBERS = ("action", "executed", "interaction", "room", "target")
FRAME = ("index", "episode_index", "frame_index")
RECORDED_BY = "`rocket-hf simulate vizdoom` records what ROCKET-2 learns from"


@dataclass(frozen=True)
class Episode:
    """`frames` are rows of the recorded rooms. Its target is 1 + the number of an object, 0 in views of a room."""

    frames: range
    dataset: int
    number: int  # in its dataset
    room: int
    target: int
    interaction: int


class RecordedRooms:
    """All datasets of a run, one after the other. A room has its number in all of them."""

    images: Tensor  # (frames, 3, H, W) uint8
    objects: Tensor  # (frames, H, W) uint8: 0, or 1 + the number of an object

    def __init__(self, ids: Sequence[str]):
        """All but the pictures, which `read` brings."""
        self.sets = [open_files(id) for id in ids]
        self.factors = action_names(self.sets)
        self.size = picture_size(self.sets)
        tables = [read_numbers(files) for files in self.sets]
        columns = {name: torch.from_numpy(np.concatenate([table[name] for table in tables])) for name in NUMBERS}
        self.actions, self.executed = columns["action"], columns["executed"]  # (frames, factors)
        self.episodes = [
            episode
            for number, table in enumerate(tables)
            for episode in episodes_of(number, table, before(tables, number))
        ]

    def read(self) -> None:
        self.images = torch.cat([read_pictures(files, VIEW, "RGB") for files in self.sets])
        self.objects = torch.cat([read_pictures(files, OBJECTS, "L") for files in self.sets])[:, 0]

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def rooms(self) -> list[int]:
        return sorted({episode.room for episode in self.episodes})

    def visible(self) -> Tensor:
        """Which object is anywhere in which picture: (frames, 1 + the largest number), whose first column is unused."""
        most = int(self.objects.max())
        seen = [(self.objects == number).flatten(1).any(dim=1) for number in range(1, most + 1)]
        return torch.stack([torch.zeros(len(self.objects), dtype=torch.bool), *seen], dim=1)


def open_files(id: str) -> DatasetFiles:
    root, revision = locate(id)
    files = read_files(root.resolve().name if revision == LOCAL else id, root)
    for name in (VIEW, OBJECTS, *NUMBERS):
        if name not in files.meta.features:
            raise UserError(f"the dataset {id} has no column {name!r}: {RECORDED_BY}")
    return files


def action_names(sets: Sequence[DatasetFiles]) -> list[str]:
    names = [list(files.meta.features["action"]["names"]) for files in sets]
    for files, other in zip(sets, names, strict=True):
        if other != names[0]:
            raise UserError(f"the actions of {files.id} are {', '.join(other)}, of {sets[0].id} {', '.join(names[0])}")
    return names[0]


def picture_size(sets: Sequence[DatasetFiles]) -> tuple[int, int]:
    """Height and width."""
    sizes = [tuple(files.meta.features[key]["shape"][:2]) for files in sets for key in (VIEW, OBJECTS)]
    if len(set(sizes)) > 1:
        listed = ", ".join(sorted({f"{rows}x{columns}" for rows, columns in sizes}))
        raise UserError(f"pictures and masks of all datasets must have one size, got {listed}: record them alike")
    return sizes[0]


def read_numbers(files: DatasetFiles) -> dict[str, np.ndarray]:
    columns = read_columns(files.id, files.data_files(), [*NUMBERS, *FRAME])
    check_frames(files, columns["index"], columns["episode_index"])
    return {name: values.reshape(len(values), -1) if name in ("action", "executed") else values.reshape(-1)
            for name, values in columns.items()}  # fmt: skip


def before(tables: Sequence[dict[str, np.ndarray]], number: int) -> int:
    """The frames of the datasets before one."""
    return sum(len(table["index"]) for table in tables[:number])


def episodes_of(dataset: int, table: dict[str, np.ndarray], first: int) -> list[Episode]:
    ends = np.flatnonzero(np.diff(table["episode_index"], append=-1)) + 1
    starts = [0, *ends[:-1].tolist()]
    return [
        Episode(
            frames=range(first + start, first + int(end)),
            dataset=dataset,
            number=int(table["episode_index"][start]),
            **{name: int(table[name][start]) for name in ("room", "target", "interaction")},
        )
        for start, end in zip(starts, ends, strict=True)
    ]


def read_pictures(files: DatasetFiles, key: str, mode: str) -> Tensor:
    """All of a column, (frames, channels, H, W) uint8."""
    total, channels = int(files.lengths.sum()), len(Image.new(mode, (1, 1)).getbands())
    height, width = files.meta.features[key]["shape"][:2]
    pixels = np.empty((total, height, width, channels), dtype=np.uint8)
    row, bar = 0, tqdm(total=total, desc=f"reading {key.rpartition('.')[2]}", unit="", leave=False, disable=None)
    for path in files.data_files():
        for batch in pq.ParquetFile(path).iter_batches(columns=[key]):
            for stored in batch.column(0).field("bytes"):
                pixels[row] = decoded(stored.as_py(), mode, files, row)
                row += 1
                bar.update()
    bar.close()
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def decoded(stored: bytes | None, mode: str, files: DatasetFiles, row: int) -> Any:
    try:
        with Image.open(io.BytesIO(stored or b"")) as picture:
            return np.array(picture.getchannel(0) if mode == "L" else picture.convert(mode)).reshape(
                *picture.size[::-1], -1
            )
    except OSError as error:
        raise UserError(f"picture {row} of the dataset {files.id} cannot be read: {error}") from error
