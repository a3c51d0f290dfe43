"""A video's frames by number, decoded forwards where that is shorter than a seek."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from .errors import UserError

NEAR = 24  # frames: decoding so many small ones takes as long as a seek


class VideoCursor:
    def __init__(self, path: Path, fps: int, pixels: str) -> None:
        """`pixels` as ffmpeg names them: "rgb24", "gray12le"."""
        self.path, self.fps, self.pixels = path, fps, pixels
        self.container = av.open(str(path))
        self.stream = self.container.streams.video[0]
        self.position = -1  # the last frame that was decoded
        self.frames: Iterator[av.VideoFrame] = self.container.decode(video=0)

    def frame(self, number: int) -> np.ndarray:
        if not self.position < number <= self.position + NEAR:
            self.seek(number)
        for frame in self.frames:
            self.position = round(frame.time * self.fps)
            if self.position >= number:
                break
        if self.position != number:
            raise UserError(f"the video {self.path} has no frame {number}: record it again")
        return frame.to_ndarray(format=self.pixels)

    def seek(self, number: int) -> None:
        """To the last key frame that is not after it."""
        assert self.stream.time_base is not None
        self.container.seek(int(number / self.fps / self.stream.time_base), stream=self.stream, backward=True)
        self.frames = self.container.decode(video=0)
        self.position = -1
