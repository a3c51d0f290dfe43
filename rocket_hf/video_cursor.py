"""Reader of single frames of a video by number."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from .errors import UserError

MAX_DECODED_GAP = 24  # frames: skipping more frames by decoding takes longer than a seek


class VideoCursor:
    """Reader of a video file that decodes forwards, and seeks only for frames that are behind or far ahead."""

    def __init__(self, path: Path, fps: int, pixel_format: str) -> None:
        """`pixel_format` is ffmpeg's name of the format of the returned frames, such as "rgb24" or "gray12le"."""
        self.path, self.fps, self.pixel_format = path, fps, pixel_format
        try:
            self.container = av.open(str(path), metadata_errors="replace")
        except (av.FFmpegError, OSError) as error:
            raise UserError(f"the video {path} cannot be read ({error.strerror}): record it again") from error
        self.stream = self.container.streams.video[0]
        self.position = -1  # number of the last decoded frame
        self.frames: Iterator[av.VideoFrame] = self.container.decode(video=0)

    def frame(self, number: int) -> np.ndarray:
        if not self.position < number <= self.position + MAX_DECODED_GAP:
            self.seek(number)
        try:
            for frame in self.frames:
                self.position = round(frame.time * self.fps)
                if self.position >= number:
                    break
        except av.FFmpegError as error:
            raise UserError(f"the video {self.path} is damaged ({error.strerror}): record it again") from error
        if self.position != number:
            raise UserError(f"the video {self.path} has no frame {number}: record it again")
        return frame.to_ndarray(format=self.pixel_format)

    def seek(self, number: int) -> None:
        """Seek to the last key frame at or before the frame."""
        assert self.stream.time_base is not None
        self.container.seek(int(number / self.fps / self.stream.time_base), stream=self.stream, backward=True)
        self.frames = self.container.decode(video=0)
        self.position = -1
