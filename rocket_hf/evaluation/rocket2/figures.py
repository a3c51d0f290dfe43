"""Figures and videos of ROCKET-2 episodes: the goal view, the player's view, the target and its predicted position.

A strip shows one episode in each row; a video shows all steps of one episode.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rocket_hf.files import create_folder, write_atomically
from rocket_hf.sims.vizdoom.world import Event

from ..rollout_strips import FILES, spaced_indices, write_compact_png
from ..videos import write_video
from .episode import Rocket2Episode
from .rollouts import EpisodeFrame
from .simulator import GoalView

STRIP_SCALE, VIDEO_SCALE = 3, 4  # each pixel is enlarged to a square of this width
STRIP_FRAMES = 7  # of each episode
FPS = 5  # slower than the game
TEXT_HEIGHT, GAP, MARGIN = 20, 6, 10  # pixels
PAPER, INK, OUTLINE, CONFIDENT, UNCERTAIN = "white", "black", (255, 225, 0), (255, 0, 200), (190, 190, 190)
OUTCOMES: dict[Event, str] = {
    "target": "reaches the target", "wrong": "reaches another object", "none": "reaches no object",
}  # fmt: skip
LEGEND = (
    "Yellow: the target.  Cross: predicted position of the target, gray if it is predicted to be out of view.  "
    "Number: predicted probability that the target is in view."
)
RecordedEpisode = tuple[Rocket2Episode, Sequence[EpisodeFrame]]


class VideoRecorder:
    """Recorder of the first episode, by its seed, with each outcome; it writes videos of all episodes to `videos`."""

    def __init__(self, videos: Path | None = None):
        self.videos = videos
        self.first_episodes: dict[Event, RecordedEpisode] = {}
        if videos is not None:
            create_folder(videos)

    def __call__(self, episode: Rocket2Episode, frames: Sequence[EpisodeFrame]) -> None:
        first = self.first_episodes.get(episode.event)
        if first is None or episode.start.seed < first[0].start.seed:
            self.first_episodes[episode.event] = (episode, frames)
        if self.videos is not None:
            outcome = {"none": "neither"}.get(episode.event, episode.event)
            path = self.videos / f"room-{episode.start.seed}-{episode.kind.replace(' ', '-')}-{outcome}.mp4"
            write_video(path, [video_frame(episode, frame) for frame in frames], FPS)

    def write_strip(self, path: Path, title: str) -> None:
        image = strip([self.first_episodes[event] for event in OUTCOMES if event in self.first_episodes], title)
        write_atomically(path, lambda temporary: image.save(temporary, format="PNG"))

    def write_first_outcomes(self, folder: Path) -> None:
        """Write success.png and failure.png of the first episode with each; remove those of an earlier evaluation."""
        create_folder(folder)
        for success, name in FILES.items():
            recorded = [each for event, each in self.first_episodes.items() if (event == "target") == success]
            if recorded:
                row = strip_row(*min(recorded, key=lambda each: each[0].start.seed))
                write_compact_png(folder / name, row, heights=(row.height, row.height * 2 // 3))
            else:
                (folder / name).unlink(missing_ok=True)


def strip(recorded: Sequence[RecordedEpisode], title: str) -> Image.Image:
    rows = [strip_row(episode, frames) for episode, frames in recorded]
    width = max(row.width for row in rows) + 2 * MARGIN
    height = sum(row.height + GAP for row in rows) + 2 * (TEXT_HEIGHT + MARGIN)
    image = Image.new("RGB", (width, height), PAPER)
    write_text(image, (MARGIN, MARGIN), title, 15)
    top = MARGIN + TEXT_HEIGHT + GAP
    for row in rows:
        image.paste(row, (MARGIN, top))
        top += row.height + GAP
    write_text(image, (MARGIN, top), LEGEND)
    return image


def strip_row(episode: Rocket2Episode, frames: Sequence[EpisodeFrame]) -> Image.Image:
    """Draw the goal view at the start, then steps from the first to the last."""
    cells = [goal_cell(frames[0].goal, "goal view", STRIP_SCALE)]
    cells += [frame_cell(frames[index], STRIP_SCALE) for index in spaced_indices(len(frames), STRIP_FRAMES)]
    row = Image.new("RGB", (len(cells) * (cells[0].width + GAP), cells[0].height + TEXT_HEIGHT), PAPER)
    write_text(row, (0, 2), episode_caption(episode))
    for number, cell in enumerate(cells):
        row.paste(cell, (number * (cell.width + GAP), TEXT_HEIGHT))
    return row


def video_frame(episode: Rocket2Episode, frame: EpisodeFrame) -> np.ndarray:
    """Draw the goal view beside the player's view: (height, width, 3) uint8, both sizes even."""
    goal, view = goal_cell(frame.goal, f"goal: {episode.kind}", VIDEO_SCALE), frame_cell(frame, VIDEO_SCALE)
    image = Image.new("RGB", (goal.width + GAP + view.width, goal.height), PAPER)
    image.paste(goal, (0, 0))
    image.paste(view, (goal.width + GAP, 0))
    return np.asarray(image)


def episode_caption(episode: Rocket2Episode) -> str:
    outcome = OUTCOMES[episode.event]
    return f"room {episode.start.seed}, target {episode.kind}: {outcome} after {episode.steps} steps"


def goal_cell(goal: GoalView, caption: str, scale: int) -> Image.Image:
    return add_caption(outline_mask(goal.image, goal.mask, scale), caption)


def frame_cell(frame: EpisodeFrame, scale: int) -> Image.Image:
    reply, output = frame.reply, frame.output
    image, caption = outline_mask(reply.image, reply.mask, scale), f"step {reply.steps}"
    if output is not None and output.visibility is not None:
        caption += f", in view: {output.visibility:.2f}"
    if output is not None and output.point is not None:
        is_confident = output.visibility is None or output.visibility > 0.5
        draw_cross(image, output.point, CONFIDENT if is_confident else UNCERTAIN)
    return add_caption(image, caption)


def outline_mask(image: np.ndarray, mask: np.ndarray, scale: int) -> Image.Image:
    """Enlarge each pixel to a square, and draw a bright and a dark line around the mask."""
    large, area = (np.repeat(np.repeat(values, scale, axis=0), scale, axis=1) for values in (image, mask))
    inner, outer = dilate(area, 2), dilate(area, 3)
    large[outer & ~inner] = 0
    large[inner & ~area] = OUTLINE
    return Image.fromarray(large)


def dilate(area: np.ndarray, pixels: int) -> np.ndarray:
    """Grow (H, W) bool by `pixels` in the four directions."""
    for _ in range(pixels):
        padded = np.pad(area, 1)
        area = padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return area


def draw_cross(image: Image.Image, point: tuple[float, float], color: tuple[int, int, int]) -> None:
    """Draw a cross at (y, x), fractions of the image; points outside are moved to its edge."""
    x = min(max(point[1], 0.0), 1.0) * (image.width - 1)
    y = min(max(point[0], 0.0), 1.0) * (image.height - 1)
    draw = ImageDraw.Draw(image)
    for width, reach, ink in ((5, 10, (0, 0, 0)), (3, 9, color)):
        draw.line([(x - reach, y), (x + reach, y)], fill=ink, width=width)
        draw.line([(x, y - reach), (x, y + reach)], fill=ink, width=width)


def add_caption(image: Image.Image, caption: str) -> Image.Image:
    cell = Image.new("RGB", (image.width, image.height + TEXT_HEIGHT), PAPER)
    cell.paste(image, (0, 0))
    write_text(cell, (2, image.height + 2), caption)
    return cell


def write_text(image: Image.Image, position: tuple[int, int], text: str, size: int = 13) -> None:
    ImageDraw.Draw(image).text(position, text, fill=INK, font=font(size))


@cache
def font(size: int) -> Any:
    return ImageFont.load_default(size)
