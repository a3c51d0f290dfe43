"""One camera's pictures in a LeRobot dataset, by frame: (3, H, W) uint8, decoded where they are asked for.

Both sources hold plain numbers and paths, so that a worker gets them at no cost, and open their files in the process
that reads. A file stays open, since opening one takes longer than decoding a small picture.
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

OPEN_VIDEOS = 64  # per process
TOLERANCE = 1e-4  # seconds between the time asked for and the frame's own, as lerobot has it
FETCHED_BLOCK = 2**20  # bytes of a video that lies elsewhere; each open video keeps its last 32 blocks
READ_ON = 16  # frames ahead in the file, at most, that are decoded rather than sought


class ImageReader(Protocol):
    def read(self, index: int, episode: int) -> Tensor:
        """Of a frame, by its number in the dataset, and of the episode that it belongs to: (3, H, W) uint8."""


@dataclass
class ArrowImageReader:
    """Compressed pictures in a column of Arrow files, which are mapped into memory and not read as a whole."""

    files: list[str]
    key: str

    def read(self, index: int, episode: int) -> Tensor:
        from PIL import Image

        columns, starts = open_column(tuple(self.files), self.key)
        number = int(np.searchsorted(starts, index, side="right")) - 1
        stored = columns[number][index - int(starts[number])].as_buffer()
        if stored is None:
            raise UserError("the picture is missing")
        with Image.open(io.BytesIO(stored)) as picture:
            pixels = np.array(picture.convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


@dataclass
class InMemoryImageReader:
    """ImageReader of some episodes, decoded once and kept in memory: a small dataset is then read as fast as memory is."""

    pixels: Tensor  # (frames kept, 3, H, W) uint8; workers share a tensor's memory
    rows: Tensor  # (frames of the dataset,) the row of each frame that is kept

    def read(self, index: int, episode: int) -> Tensor:
        return self.pixels[int(self.rows[index])]


@lru_cache(maxsize=16)
def open_column(files: tuple[str, ...], key: str) -> tuple[list[pa.Array], np.ndarray]:
    """The bytes of the pictures, piece by piece, and the frame with which each piece starts."""
    batches = [batch for file in files for batch in pa.ipc.open_stream(pa.memory_map(file))]
    columns = [batch.column(key).field("bytes") for batch in batches]
    return columns, np.cumsum([0, *(len(column) for column in columns[:-1])])


@dataclass
class VideoImageReader:
    """Frames of video files that hold several episodes each."""

    files: list[str]
    file_of_episode: np.ndarray  # (episodes,)
    start_of_episode: np.ndarray  # (episodes,) seconds in the file
    timestamps: Tensor  # (frames of the dataset,) seconds in the episode; workers share a tensor's memory

    def read(self, index: int, episode: int) -> Tensor:
        file = self.files[self.file_of_episode[episode]]
        seconds = float(self.start_of_episode[episode]) + float(self.timestamps[index])
        return open_video(file).frame(seconds)


class VideoReader(Protocol):
    def frame(self, seconds: float) -> Tensor:
        """The frame at this time, (3, H, W) uint8."""


@lru_cache(maxsize=OPEN_VIDEOS)
def open_video(file: str) -> VideoReader:
    """Of a path, or of an address (scheme://...), of which only what is needed is fetched."""
    if "://" not in file and not Path(file).is_file():
        raise UserError(f"the video {file} is missing")
    return TorchcodecReader(file) if load_torchcodec_decoder() else PyavReader(file)


def source(file: str) -> Any:
    """What a decoder opens: a path, or a file-like object that fetches and keeps blocks of what lies elsewhere."""
    if "://" not in file:
        return file
    import fsspec

    place, path = fsspec.core.url_to_fs(file)
    return place.open(path, "rb", block_size=FETCHED_BLOCK, cache_type="blockcache")


@lru_cache(maxsize=1)
def load_torchcodec_decoder() -> Any:
    """torchcodec's decoder, the faster one, where its libraries load; `rocket-hf doctor` says why they do not."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError):
        return None
    return VideoDecoder


class TorchcodecReader:
    def __init__(self, file: str):
        self.file = file
        try:
            self.decoder = load_torchcodec_decoder()(source(file), seek_mode="approximate", num_ffmpeg_threads=1)
        except (OSError, RuntimeError, ValueError) as error:
            raise unreadable(file, error) from error

    def frame(self, seconds: float) -> Tensor:
        try:
            frame = self.decoder.get_frame_at(round(seconds * self.decoder.metadata.average_fps))
        except (IndexError, RuntimeError) as error:
            raise unreadable(self.file, error) from error
        if abs(frame.pts_seconds - seconds) >= TOLERANCE:
            raise no_frame(self.file, seconds, frame.pts_seconds)
        return frame.data


class PyavReader:
    """Decodes on from where it stands if the frame is near, and else from the key frame before it."""

    def __init__(self, file: str):
        import av
        from av.video.reformatter import VideoReformatter

        self.file = file
        try:
            self.container = av.open(source(file))
            self.stream = self.container.streams.video[0]
        except (av.FFmpegError, IndexError, OSError) as error:
            raise unreadable(file, error) from error
        self.stream.codec_context.thread_count = 1  # the workers share the cores
        self.to_rgb = VideoReformatter()
        self.failure = av.FFmpegError
        self.tick = float(self.stream.time_base or 1)  # seconds
        self.read_on = READ_ON / float(self.stream.average_rate or 30)
        self.frames: Iterator[Any] = iter(())
        self.last = float("inf")  # the time of the frame that was decoded last

    def frame(self, seconds: float) -> Tensor:
        try:
            found = self.decode(seconds)
        except self.failure as error:
            self.last = float("inf")  # seek next time
            raise unreadable(self.file, error) from error
        pixels = self.to_rgb.reformat(found, format="rgb24").to_ndarray()
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def decode(self, seconds: float) -> Any:
        if not self.last < seconds - TOLERANCE < self.last + self.read_on:
            self.container.seek(round((seconds - TOLERANCE) / self.tick), backward=True, stream=self.stream)
            self.frames = self.container.decode(self.stream)
        for frame in self.frames:
            self.last = frame.time
            if frame.time > seconds - TOLERANCE:
                if frame.time >= seconds + TOLERANCE:
                    raise no_frame(self.file, seconds, frame.time)
                return frame
        ended, self.last = self.last, float("inf")
        raise no_frame(self.file, seconds, ended)


def unreadable(file: str, error: Exception) -> ValueError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ValueError(f"the video {file} cannot be decoded ({reason}): copy or record it again")


def no_frame(file: str, seconds: float, nearest: float) -> ValueError:
    return ValueError(
        f"the video {file} has no frame at {seconds:.4f} s, the nearest that was found is at {nearest:.4f} s: "
        "its timestamps do not agree with the dataset's"
    )
