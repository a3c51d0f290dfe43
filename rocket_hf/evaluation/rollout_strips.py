"""Small images of the first successful and the first failed episode, for reports and model cards.

The frames are observations that the policy received anyway; only the end of an episode that may be shown is rendered in
addition. Memory is bounded: a few frames of each running episode and of the best candidate for each outcome are kept.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from rocket_hf.files import create_folder, write_atomically

from .episode_simulator import EpisodeReply, EpisodeStart
from .policy_runner import PolicyRunner

FOLDER = "rollouts"  # in the folder of a report
FILES = {True: "success.png", False: "failure.png"}  # by success
FRAMES = 6  # in a strip
KEPT_FRAMES = 4 * FRAMES  # at most, of a running episode
GAP = 2  # pixels between frames
MAX_BYTES = 60_000
COLORS, HEIGHTS = (256, 128, 64, 32), (128, 96, 64)  # tried in this order until a strip is small enough


class SampledFrames:
    """Evenly spaced frames of an episode of unknown length, and its last frame."""

    def __init__(self) -> None:
        self.frames: list[np.ndarray] = []
        self.stride, self.count = 1, 0
        self.last: np.ndarray | None = None

    def add(self, frame: np.ndarray) -> None:
        if self.count % self.stride == 0:
            self.frames.append(frame)
        if len(self.frames) > KEPT_FRAMES:
            self.frames, self.stride = self.frames[::2], 2 * self.stride
        self.count += 1
        self.last = frame

    def pick(self, number: int) -> list[np.ndarray]:
        """Return at most `number` frames from the first to the last."""
        frames = list(self.frames)
        if self.last is not None and self.last is not frames[-1]:
            frames.append(self.last)
        return [frames[index] for index in spaced_indices(len(frames), number)]


def spaced_indices(length: int, number: int) -> list[int]:
    """Return at most `number` evenly spaced indices, with the first and the last."""
    return sorted({round(index) for index in np.linspace(0, length - 1, min(number, length))})


@dataclass
class RolloutStrips:
    """Frames of the first successful and the first failed episode, in the order of `tasks` and then of seeds."""

    tasks: Sequence[str]
    running: dict[EpisodeStart, SampledFrames] = field(default_factory=dict)
    ended: dict[bool, tuple[EpisodeStart, SampledFrames]] = field(default_factory=dict)  # by success

    def rank(self, start: EpisodeStart) -> tuple[int, int]:
        return self.tasks.index(start.task), start.seed

    def candidate_outcomes(self, start: EpisodeStart) -> tuple[bool, ...]:
        """Return the outcomes (success or not) with which this episode would be shown, as far as is known."""
        if start.task not in self.tasks:
            return ()
        return tuple(
            success for success in FILES
            if success not in self.ended or self.rank(start) < self.rank(self.ended[success][0])
        )  # fmt: skip

    def add(self, start: EpisodeStart, reply: EpisodeReply, runner: PolicyRunner) -> None:
        """Keep the image of the policy's first camera."""
        outcomes = self.candidate_outcomes(start)
        if outcomes and reply.observation is not None:
            camera = runner.environment_camera(runner.policy.config.cameras[0])
            self.running.setdefault(start, SampledFrames()).add(reply.observation.images[camera])
        if reply.has_ended:
            frames = self.running.pop(start, None)
            if frames is not None and reply.success in outcomes:
                self.ended[reply.success] = (start, frames)

    def write(self, folder: Path) -> None:
        """Write success.png and failure.png, and remove those of an earlier evaluation."""
        create_folder(folder)
        for success, name in FILES.items():
            if success in self.ended:
                write_compact_png(folder / name, join_frames(self.ended[success][1].pick(FRAMES)))
            else:
                (folder / name).unlink(missing_ok=True)


def join_frames(frames: Sequence[np.ndarray]) -> Image.Image:
    """Join frames of equal size, (height, width, 3) uint8, side by side with white gaps."""
    height, width = frames[0].shape[:2]
    strip = Image.new("RGB", (len(frames) * (width + GAP) - GAP, height), "white")
    for number, frame in enumerate(frames):
        strip.paste(Image.fromarray(frame), (number * (width + GAP), 0))
    return strip


def write_compact_png(path: Path, image: Image.Image, heights: Sequence[int] = HEIGHTS) -> None:
    """Write a palette PNG of at most MAX_BYTES, with as many colors, then as many pixels, as fit.

    The image is reduced to at most heights[0] pixels. The smallest version is written if none fits.
    """
    for height in heights:
        small = image
        if image.height > height:
            small = image.resize((round(image.width * height / image.height), height), Image.Resampling.LANCZOS)
        for colors in COLORS:
            png = io.BytesIO()
            small.quantize(colors).save(png, "PNG", optimize=True)
            if png.tell() <= MAX_BYTES:
                break
        if png.tell() <= MAX_BYTES:
            break
    write_atomically(path, lambda temporary: temporary.write_bytes(png.getvalue()))
