"""Journal of a ROCKET-2 evaluation: finished episodes, so that a killed evaluation resumes after them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..episode_journal import ResultJournal
from .episode import Rocket2Episode, VisibilityRecord
from .players import PlayerOutput
from .simulator import Rocket2Start


class Rocket2Journal(ResultJournal):
    """Episodes of one player with one goal refresh interval, by their starts."""

    def __init__(self, path: Path, dependencies: Any):
        super().__init__(path, dependencies)
        episodes = [parse_episode(values) for values in self.read()]
        self.episodes = {episode.start: episode for episode in episodes}

    def add_episode(self, episode: Rocket2Episode) -> None:
        self.add(asdict(episode))

    def resumable(self, shows_images: bool) -> dict[Rocket2Start, Rocket2Episode]:
        """Return the episodes that need not be repeated.

        The images of the first episode with each outcome are not stored, so these are repeated if a report shows them.
        """
        ordered = sorted(self.episodes.values(), key=lambda episode: episode.start.seed, reverse=True)
        first = {episode.event: episode.start for episode in ordered} if shows_images else {}
        return {start: episode for start, episode in self.episodes.items() if start not in first.values()}


def parse_episode(values: dict[str, Any]) -> Rocket2Episode:
    records = tuple(
        VisibilityRecord(record["is_visible"], parse_point(record["point"]), parse_output(record["output"]))
        for record in values["visibility"]
    )
    return Rocket2Episode(**(values | {"start": Rocket2Start(**values["start"]), "visibility": records}))


def parse_output(values: dict[str, Any]) -> PlayerOutput:
    point = None if values["point"] is None else parse_point(values["point"])
    return PlayerOutput(tuple(values["choices"]), values["visibility"], point)


def parse_point(values: list[float]) -> tuple[float, float]:
    y, x = values
    return y, x
