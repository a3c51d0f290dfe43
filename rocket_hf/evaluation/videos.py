"""Videos of episodes with all cameras side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rocket_hf.files import write_atomically
from rocket_hf.sims.environment import Observation


def concatenate_cameras(observation: Observation) -> np.ndarray:
    """Return the images of all cameras side by side: (height, sum of widths, 3) uint8.

    An odd last row or column is cut off, because the video codec needs even sizes.
    """
    frame = np.concatenate(list(observation.images.values()), axis=1)
    height, width = (size - size % 2 for size in frame.shape[:2])
    return frame[:height, :width]


def write_video(path: Path, frames: Sequence[np.ndarray], fps: int) -> None:
    """Write an H.264 video in an MP4 file, atomically."""
    write_atomically(path, lambda temporary: encode_video(temporary, frames, fps))


def encode_video(path: Path, frames: Sequence[np.ndarray], fps: int) -> None:
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
