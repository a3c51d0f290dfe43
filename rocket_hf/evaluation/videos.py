"""Episodes as videos, all cameras side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rocket_hf.files import write_atomically
from rocket_hf.sims.environment import Observation


def side_by_side(observation: Observation) -> np.ndarray:
    """(height, width of all cameras, 3) uint8. An odd last row or column is left out: the codec takes even sizes."""
    picture = np.concatenate(list(observation.images.values()), axis=1)
    height, width = (size - size % 2 for size in picture.shape[:2])
    return picture[:height, :width]


def write_video(path: Path, frames: Sequence[np.ndarray], fps: int) -> None:
    """H.264 in MP4, whole or not at all."""
    write_atomically(path, lambda temporary: encode(temporary, frames, fps))


def encode(path: Path, frames: Sequence[np.ndarray], fps: int) -> None:
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
