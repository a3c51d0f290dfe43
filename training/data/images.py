"""Readers for the images of one camera in a LeRobot dataset: (3, H, W) uint8, decoded on access.

Readers hold plain numbers and paths, so that they can be sent to loader workers at no cost, and open their files in the
process that reads. Files stay open, because opening one takes longer than decoding a small image.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rocket_hf.errors import UserError

from .lerobot_files import first_line

MAX_OPEN_VIDEOS = 64  # per process
TIMESTAMP_TOLERANCE = 1e-4  # seconds between the requested time and that of the frame, as in lerobot
STREAM_BLOCK_BYTES = 2**20  # block size for remote videos; each open video keeps its last 32 blocks
MAX_FORWARD_FRAMES = 16  # distance up to which frames are decoded one by one instead of seeking


class ImageReader(Protocol):
    """Reader for the images of one camera."""

    def read(self, index: int, episode: int) -> Tensor:
        """Return the image (3, H, W) uint8 of frame `index` of the dataset, which belongs to `episode`."""


@dataclass
class ArrowImageReader:
    """Reader for compressed images in a column of Arrow files, which are memory-mapped instead of loaded."""

    files: list[str]
    key: str

    def read(self, index: int, episode: int) -> Tensor:
        from PIL import Image

        columns, starts = open_image_column(tuple(self.files), self.key)
        chunk = int(np.searchsorted(starts, index, side="right")) - 1
        encoded = columns[chunk][index - int(starts[chunk])].as_buffer()
        if encoded is None:
            raise UserError("the image is missing; record the episode again")
        try:
            with Image.open(io.BytesIO(encoded)) as image:
                pixels = np.array(image.convert("RGB"))
        except Image.DecompressionBombError as error:
            raise UserError(f"{first_line(error)}; record the episode again with smaller images") from error
        except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for broken PNG files
            raise UserError(f"{first_line(error)}; record the episode again") from error
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


@dataclass
class InMemoryImageReader:
    """Reader for images that were decoded once and are kept in memory, which is fastest for small datasets."""

    pixels: Tensor  # (images, 3, H, W) uint8; workers share a tensor's memory
    rows: Tensor  # (frames of the dataset,) row of each frame in `pixels`

    def read(self, index: int, episode: int) -> Tensor:
        return self.pixels[int(self.rows[index])]


@lru_cache(maxsize=16)
def open_image_column(files: tuple[str, ...], key: str) -> tuple[list[pa.Array], np.ndarray]:
    """Return the encoded images chunk by chunk, and the first frame of each chunk."""
    try:
        batches = [batch for file in files for batch in pa.ipc.open_stream(pa.memory_map(file))]
    except (pa.ArrowInvalid, OSError) as error:
        folder = Path(files[0]).parent
        raise UserError(
            f"the image cache in {folder} cannot be read: {first_line(error)}; delete this folder, it is written again"
        ) from error
    columns = [batch.column(key).field("bytes") for batch in batches]
    return columns, np.cumsum([0, *(len(column) for column in columns[:-1])])


@dataclass
class VideoImageReader:
    """Reader for the frames of video files, each of which may hold several episodes."""

    files: list[str]
    file_of_episode: np.ndarray  # (episodes,) index into `files`
    start_of_episode: np.ndarray  # (episodes,) seconds in the file
    timestamps: Tensor  # (frames of the dataset,) seconds in the episode; workers share a tensor's memory

    def read(self, index: int, episode: int) -> Tensor:
        file = self.files[self.file_of_episode[episode]]
        seconds = float(self.start_of_episode[episode]) + float(self.timestamps[index])
        return open_video(file).frame(seconds)


class VideoReader(Protocol):
    """Open video file."""

    def frame(self, seconds: float) -> Tensor:
        """Return the frame at this time, (3, H, W) uint8."""


@lru_cache(maxsize=MAX_OPEN_VIDEOS)
def open_video(file: str) -> VideoReader:
    """Open a video at a path or at a remote address (scheme://...), of which only the needed parts are fetched."""
    if "://" not in file and not Path(file).is_file():
        raise UserError(f"the video {file} is missing: download the dataset again")
    return TorchcodecReader(file) if load_torchcodec_decoder() else PyavReader(file)


def decoder_source(file: str) -> Any:
    """Return the argument for a decoder: a path, or a file-like object that fetches blocks of a remote file."""
    if "://" not in file:
        return file
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(file)
    return filesystem.open(path, "rb", block_size=STREAM_BLOCK_BYTES, cache_type="blockcache")


@lru_cache(maxsize=1)
def load_torchcodec_decoder() -> Any:
    """Return torchcodec's decoder, which is faster than PyAV, or None if its libraries do not load.

    `rocket-hf doctor` reports why they do not load.
    """
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError):
        return None
    return VideoDecoder


class TorchcodecReader:
    """Video reader based on torchcodec."""

    def __init__(self, file: str):
        self.file = file
        try:
            decoder = load_torchcodec_decoder()
            self.decoder = decoder(decoder_source(file), seek_mode="approximate", num_ffmpeg_threads=1)
        except (OSError, RuntimeError, ValueError) as error:
            raise decoding_error(file, error) from error

    def frame(self, seconds: float) -> Tensor:
        try:
            frame = self.decoder.get_frame_at(round(seconds * self.decoder.metadata.average_fps))
        except (IndexError, OSError, RuntimeError) as error:
            raise decoding_error(self.file, error) from error
        if abs(frame.pts_seconds - seconds) >= TIMESTAMP_TOLERANCE:
            raise missing_frame_error(self.file, seconds, frame.pts_seconds)
        return frame.data


class PyavReader:
    """Video reader based on PyAV.

    It decodes forward from the current position if the requested frame is near, and otherwise seeks to the key frame
    before it.
    """

    def __init__(self, file: str):
        import av
        from av.video.reformatter import VideoReformatter

        self.file = file
        try:
            self.container = av.open(decoder_source(file), metadata_errors="replace")
            self.stream = self.container.streams.video[0]
        except (av.FFmpegError, IndexError, OSError) as error:
            raise decoding_error(file, error) from error
        self.stream.codec_context.thread_count = 1  # the loader's workers share the cores
        self.to_rgb = VideoReformatter()
        self.errors = (av.FFmpegError, OSError)
        self.tick = float(self.stream.time_base or 1)  # seconds
        self.forward_seconds = MAX_FORWARD_FRAMES / float(self.stream.average_rate or 30)
        self.frames: Iterator[Any] = iter(())
        self.last_time = float("inf")  # time of the last decoded frame; infinite before a seek

    def frame(self, seconds: float) -> Tensor:
        try:
            frame = self.decode(seconds)
        except self.errors as error:
            self.last_time = float("inf")  # the next call seeks
            raise decoding_error(self.file, error) from error
        pixels = self.to_rgb.reformat(frame, format="rgb24").to_ndarray()
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def decode(self, seconds: float) -> Any:
        if not self.last_time < seconds - TIMESTAMP_TOLERANCE < self.last_time + self.forward_seconds:
            self.container.seek(round((seconds - TIMESTAMP_TOLERANCE) / self.tick), backward=True, stream=self.stream)
            self.frames = self.container.decode(self.stream)
        for frame in self.frames:
            self.last_time = frame.time
            if frame.time > seconds - TIMESTAMP_TOLERANCE:
                if frame.time >= seconds + TIMESTAMP_TOLERANCE:
                    raise missing_frame_error(self.file, seconds, frame.time)
                return frame
        end_time, self.last_time = self.last_time, float("inf")
        raise missing_frame_error(self.file, seconds, end_time)


def decoding_error(file: str, error: Exception) -> UserError:
    return UserError(
        f"the video {file} cannot be decoded: {first_line(error)}; download it again, or record the episode again"
    )


def missing_frame_error(file: str, seconds: float, nearest: float) -> UserError:
    return UserError(
        f"the video {file} has no frame at {seconds:.4f} s, the nearest frame found is at {nearest:.4f} s: the video "
        "does not match the dataset's timestamps, record the episode again"
    )
