"""Recorded rooms, held in memory: images, object masks, actions and episodes of all datasets of a run."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from rocket_hf.errors import UserError
from rocket_hf.teachers.cache_manifest import LOCAL

from ..data.lerobot_files import (
    DatasetFiles,
    check_frames,
    first_line,
    locate_dataset,
    read_columns,
    read_dataset_files,
    unreadable_file,
)

# Columns of the recordings of `rocket-hf simulate vizdoom`.
VIEW, OBJECTS = "observation.images.view", "observation.images.objects"
RECORDED_COLUMNS = ("action", "executed", "interaction", "room", "target")
FRAME_COLUMNS = ("index", "episode_index", "frame_index")


@dataclass(frozen=True)
class RecordedEpisode:
    """Episode of a recording: a demonstration, which walks to a target object, or a collection of views of a room."""

    frames: range  # rows of the recorded rooms
    dataset_index: int
    episode_index: int  # in its dataset
    room: int
    target: int  # object id in the masks; 0 if the episode is a collection of views
    interaction: int


class RecordedRooms:
    """Recordings of all datasets of a run, concatenated. The index of a room is the same in all datasets."""

    images: Tensor  # (frames, 3, H, W) uint8
    objects: Tensor  # (frames, H, W) uint8 object ids, 0 where there is no object

    def __init__(self, ids: Sequence[str]):
        """Read everything but images and masks, which `load_images` reads."""
        self.files = [open_recording(id) for id in ids]
        self.action_names = common_action_names(self.files)
        self.image_size = common_image_size(self.files)
        tables = [read_frame_table(files) for files in self.files]
        columns = {
            name: torch.from_numpy(np.concatenate([table[name] for table in tables])) for name in RECORDED_COLUMNS
        }
        self.actions, self.executed = columns["action"], columns["executed"]  # (frames, factors)
        self.episodes: list[RecordedEpisode] = []
        first_row = 0
        for dataset_index, table in enumerate(tables):
            self.episodes += read_episodes(dataset_index, table, first_row)
            first_row += len(table["index"])

    def load_images(self) -> None:
        self.images = torch.cat([read_image_column(files, VIEW, "RGB") for files in self.files])
        self.objects = torch.cat([read_image_column(files, OBJECTS, "L") for files in self.files])[:, 0]

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def rooms(self) -> list[int]:
        return sorted({episode.room for episode in self.episodes})

    def object_visibility(self) -> Tensor:
        """Return whether each object is visible in each frame, (frames, 1 + largest object id); column 0 is False."""
        largest = int(self.objects.max())
        visible = [(self.objects == object_id).flatten(1).any(dim=1) for object_id in range(1, largest + 1)]
        return torch.stack([torch.zeros(len(self.objects), dtype=torch.bool), *visible], dim=1)


def open_recording(id: str) -> DatasetFiles:
    root, revision = locate_dataset(id)
    files = read_dataset_files(root.resolve().name if revision == LOCAL else id, root)
    for name in (VIEW, OBJECTS, *RECORDED_COLUMNS):
        if name not in files.meta.features:
            raise UserError(
                f"the dataset {id} has no column {name!r}: record training data of ROCKET-2 with "
                "`rocket-hf simulate vizdoom`"
            )
    return files


def common_action_names(recordings: Sequence[DatasetFiles]) -> list[str]:
    names = [list(files.meta.features["action"]["names"]) for files in recordings]
    for files, other in zip(recordings, names, strict=True):
        if other != names[0]:
            raise UserError(
                f"the actions of {files.id} are {', '.join(other)}, but those of {recordings[0].id} are "
                f"{', '.join(names[0])}: train on datasets with the same actions"
            )
    return names[0]


def common_image_size(recordings: Sequence[DatasetFiles]) -> tuple[int, int]:
    """Return height and width of the images and masks of all datasets."""
    sizes = [tuple(files.meta.features[key]["shape"][:2]) for files in recordings for key in (VIEW, OBJECTS)]
    if len(set(sizes)) > 1:
        listed = ", ".join(sorted({f"{rows}x{columns}" for rows, columns in sizes}))
        raise UserError(f"images and masks of all datasets must have the same size, got {listed}: record them again")
    return sizes[0]


def read_frame_table(files: DatasetFiles) -> dict[str, np.ndarray]:
    """Return the columns of all frames: (frames, factors) for actions, (frames,) for all others."""
    columns = read_columns(files.id, files.data_files(), [*RECORDED_COLUMNS, *FRAME_COLUMNS])
    check_frames(files, columns["index"], columns["episode_index"])
    return {name: values.reshape(len(values), -1) if name in ("action", "executed") else values.reshape(-1)
            for name, values in columns.items()}  # fmt: skip


def read_episodes(dataset_index: int, table: dict[str, np.ndarray], first_row: int) -> list[RecordedEpisode]:
    """Split the frames of a dataset into episodes; `first_row` is the row of its first frame in the recorded rooms."""
    ends = np.flatnonzero(np.diff(table["episode_index"], append=-1)) + 1
    starts = [0, *ends[:-1].tolist()]
    return [
        RecordedEpisode(
            frames=range(first_row + start, first_row + int(end)),
            dataset_index=dataset_index,
            episode_index=int(table["episode_index"][start]),
            **{name: int(table[name][start]) for name in ("room", "target", "interaction")},
        )
        for start, end in zip(starts, ends, strict=True)
    ]


def read_image_column(files: DatasetFiles, key: str, mode: str) -> Tensor:
    """Decode all images of a column, (frames, channels, H, W) uint8."""
    total, channels = int(files.lengths.sum()), len(Image.new(mode, (1, 1)).getbands())
    height, width = files.meta.features[key]["shape"][:2]
    pixels = np.empty((total, height, width, channels), dtype=np.uint8)
    encoded_images = read_encoded_images(files, key)
    bar = tqdm(encoded_images, f"reading {key.rpartition('.')[2]}", total, unit="", leave=False, disable=None)
    for row, encoded in enumerate(bar):
        pixels[row] = decode_image(encoded, mode, files, row)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def read_encoded_images(files: DatasetFiles, key: str) -> Iterator[bytes | None]:
    for path in files.data_files():
        try:
            for batch in pq.ParquetFile(path).iter_batches(columns=[key]):
                yield from batch.column(0).field("bytes").to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise unreadable_file(files.id, path) from error


def decode_image(encoded: bytes | None, mode: str, files: DatasetFiles, row: int) -> Any:
    """Decode an image to (H, W, channels). A mask, mode "L", may be stored as RGB with equal channels."""
    try:
        with Image.open(io.BytesIO(encoded or b"")) as image:
            channels = image.getchannel(0) if mode == "L" else image.convert(mode)
            return np.array(channels).reshape(*image.size[::-1], -1)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: broken PNG files
        raise UserError(
            f"image {row} of the dataset {files.id} cannot be read: {first_line(error)}; record it again"
        ) from error
