"""Image readers of a dataset's cameras: the files that they read are downloaded, streamed or cached here."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from rocket_hf.errors import UserError
from rocket_hf.teachers.cache_manifest import LOCAL

from .images import ArrowImageReader, ImageReader, VideoImageReader
from .lerobot_files import DatasetFiles, download_files, first_line


def open_image_readers(
    files: DatasetFiles,
    revision: str,
    keys: Sequence[str],
    episodes: Sequence[int],
    timestamps: np.ndarray,
    streaming: bool = False,
) -> dict[str, ImageReader]:
    """Return an image reader for each camera key.

    Videos of the given episodes are downloaded, or streamed. Images stored in the data files were downloaded with them.
    """
    stored_keys = [key for key in keys if key in files.meta.image_keys]
    arrow_files = write_arrow_cache(files, stored_keys) if stored_keys else []
    readers: dict[str, ImageReader] = {key: ArrowImageReader(arrow_files, key) for key in stored_keys}
    shared_timestamps = torch.from_numpy(np.array(timestamps))
    for key in keys:
        if key in files.meta.video_keys:
            names, file_of_episode = files.video_files(key)
            if streaming and revision != LOCAL:
                videos = [files.hub_url(name, revision) for name in names]
            else:
                used = sorted(set(file_of_episode[list(episodes)].tolist()))
                download_missing_videos(files, revision, [names[index] for index in used])
                videos = [str(files.root / name) for name in names]
            starts = files.episode_column(f"videos/{key}/from_timestamp")
            readers[key] = VideoImageReader(videos, file_of_episode, starts, shared_timestamps)
    return readers


def download_missing_videos(files: DatasetFiles, revision: str, names: Sequence[str]) -> None:
    missing = [name for name in names if not (files.root / name).is_file()]
    if missing and revision != LOCAL:
        download_files(f"{files.id.partition('@')[0]}@{revision}", missing)
    for name in missing:
        if not (files.root / name).is_file():
            raise UserError(f"the dataset {files.id} lacks the video {name}: download or record it again")


def write_arrow_cache(files: DatasetFiles, keys: list[str]) -> list[str]:
    """Write the image columns to Arrow files, which can be memory-mapped, in the cache of `datasets`; return the files.

    They are written once and found again later.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetsError
    from lerobot.utils.utils import SuppressProgressBars

    try:
        with SuppressProgressBars():
            table = Dataset.from_parquet([str(file) for file in files.data_files()], columns=keys)
    except (DatasetsError, KeyError, OSError, TypeError, ValueError, pa.ArrowException) as error:  # damaged metadata
        raise UserError(
            f"the images of the dataset {files.id} cannot be written to the cache of `datasets` (HF_DATASETS_CACHE): "
            f"{first_line(error.__cause__ or error)}"
        ) from error
    return [entry["filename"] for entry in table.cache_files]
