"""Episodes to look at: the goal, what the player saw, where the target was and where the player took it to be.

A strip has an episode a row; a video has all steps of one.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rocket_hf.files import write_atomically
from rocket_hf.sims.vizdoom.world import Event

from ..videos import write_video
from .environment import GoalView
from .rollouts import Episode, Shot

STRIP_SCALE, VIDEO_SCALE = 3, 4  # pixels of a pixel
VIEWS = 7  # of an episode in a strip
FPS = 5  # slower than it was
BAND, GAP, MARGIN = 20, 6, 10  # pixels: for words, between pictures, round them
PAPER, INK, OUTLINE, SURE, UNSURE = "white", "black", (255, 225, 0), (255, 0, 200), (190, 190, 190)
ENDINGS: dict[Event, str] = {"target": "comes to it", "wrong": "comes to another object", "none": "comes to none"}
LEGEND = (
    "Yellow: where the target is.  Cross: where the policy takes it to be, gray where it thinks that it does not see "
    "it.  Number: how probable it holds it that it sees the target."
)


class FilmKeeper:
    """Keeps the first episode, by its seed, that ended in each way; and writes all of them as videos if asked to."""

    def __init__(self, videos: Path | None = None):
        self.videos = videos
        self.films: dict[Event, tuple[Episode, Sequence[Shot]]] = {}
        if videos is not None:
            videos.mkdir(parents=True, exist_ok=True)

    def __call__(self, episode: Episode, shots: Sequence[Shot]) -> None:
        kept = self.films.get(episode.event)
        if kept is None or episode.start.seed < kept[0].start.seed:
            self.films[episode.event] = (episode, shots)
        if self.videos is not None:
            ending = {"none": "neither"}.get(episode.event, episode.event)
            path = self.videos / f"room-{episode.start.seed}-{episode.kind.replace(' ', '-')}-{ending}.mp4"
            write_video(path, [video_frame(episode, shot) for shot in shots], FPS)

    def write_strip(self, path: Path, title: str) -> None:
        films = [self.films[event] for event in ENDINGS if event in self.films]
        picture = strip(films, title)
        write_atomically(path, lambda place: picture.save(place, format="PNG"))


def strip(films: Sequence[tuple[Episode, Sequence[Shot]]], title: str) -> Image.Image:
    rows = [strip_row(episode, shots) for episode, shots in films]
    width = max(row.width for row in rows) + 2 * MARGIN
    height = sum(row.height + GAP for row in rows) + 2 * (BAND + MARGIN)
    whole = Image.new("RGB", (width, height), PAPER)
    write(whole, (MARGIN, MARGIN), title, 15)
    top = MARGIN + BAND + GAP
    for row in rows:
        whole.paste(row, (MARGIN, top))
        top += row.height + GAP
    write(whole, (MARGIN, top), LEGEND)
    return whole


def strip_row(episode: Episode, shots: Sequence[Shot]) -> Image.Image:
    """The goal at the start, and moments from the first to the last."""
    chosen = sorted({round(number) for number in np.linspace(0, len(shots) - 1, VIEWS)})
    cells = [goal_cell(shots[0].goal, "goal, from elsewhere", STRIP_SCALE)]
    cells += [shot_cell(shots[number], STRIP_SCALE) for number in chosen]
    row = Image.new("RGB", (len(cells) * (cells[0].width + GAP), cells[0].height + BAND), PAPER)
    write(row, (0, 2), told(episode))
    for number, cell in enumerate(cells):
        row.paste(cell, (number * (cell.width + GAP), BAND))
    return row


def video_frame(episode: Episode, shot: Shot) -> np.ndarray:
    """The goal beside the player's view: (height, width, 3) uint8, both even."""
    goal, view = goal_cell(shot.goal, f"goal: {episode.kind}", VIDEO_SCALE), shot_cell(shot, VIDEO_SCALE)
    frame = Image.new("RGB", (goal.width + GAP + view.width, goal.height), PAPER)
    frame.paste(goal, (0, 0))
    frame.paste(view, (goal.width + GAP, 0))
    return np.asarray(frame)


def told(episode: Episode) -> str:
    ending = ENDINGS[episode.event]
    return f"room {episode.start.seed}, to the {episode.kind}: {ending}, after {episode.steps} steps"


def goal_cell(goal: GoalView, words: str, scale: int) -> Image.Image:
    return with_words(outlined(goal.image, goal.mask, scale), words)


def shot_cell(shot: Shot, scale: int) -> Image.Image:
    moment, said = shot.moment, shot.said
    picture, words = outlined(moment.image, moment.mask, scale), f"step {moment.steps}"
    if said is not None and said.visibility is not None:
        words += f", sees it: {said.visibility:.2f}"
    if said is not None and said.point is not None:
        sure = said.visibility is None or said.visibility > 0.5
        cross(picture, said.point, SURE if sure else UNSURE)
    return with_words(picture, words)


def outlined(image: np.ndarray, mask: np.ndarray, scale: int) -> Image.Image:
    """Enlarged pixel by pixel, with a bright line and a dark one round the mask."""
    large, area = (np.repeat(np.repeat(values, scale, axis=0), scale, axis=1) for values in (image, mask))
    inner, outer = grown(area, 2), grown(area, 3)
    large[outer & ~inner] = 0
    large[inner & ~area] = OUTLINE
    return Image.fromarray(large)


def grown(area: np.ndarray, pixels: int) -> np.ndarray:
    """(H, W) bool, larger to all sides."""
    for _ in range(pixels):
        padded = np.pad(area, 1)
        area = padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return area


def cross(picture: Image.Image, point: tuple[float, float], color: tuple[int, int, int]) -> None:
    """At (y, x), shares of the picture; at its edge where it lies outside."""
    x = min(max(point[1], 0.0), 1.0) * (picture.width - 1)
    y = min(max(point[0], 0.0), 1.0) * (picture.height - 1)
    draw = ImageDraw.Draw(picture)
    for width, reach, ink in ((5, 10, (0, 0, 0)), (3, 9, color)):
        draw.line([(x - reach, y), (x + reach, y)], fill=ink, width=width)
        draw.line([(x, y - reach), (x, y + reach)], fill=ink, width=width)


def with_words(picture: Image.Image, words: str) -> Image.Image:
    cell = Image.new("RGB", (picture.width, picture.height + BAND), PAPER)
    cell.paste(picture, (0, 0))
    write(cell, (2, picture.height + 2), words)
    return cell


def write(picture: Image.Image, place: tuple[int, int], words: str, size: int = 13) -> None:
    ImageDraw.Draw(picture).text(place, words, fill=INK, font=font(size))


@cache
def font(size: int) -> Any:
    return ImageFont.load_default(size)
