"""Result of a ROCKET-2 episode: how it ended, and what was visible at each step."""

from dataclasses import dataclass

from rocket_hf.sims.vizdoom.world import Event

from .players import PlayerOutput
from .simulator import Rocket2Start


@dataclass(frozen=True)
class VisibilityRecord:
    """Ground truth about the goal in the player's view at one step, and the player's output at that step."""

    is_visible: bool
    point: tuple[float, float]  # (y, x), as fractions of the image; meaningless if the goal is not visible
    output: PlayerOutput


@dataclass(frozen=True)
class Rocket2Episode:
    start: Rocket2Start
    kind: str  # of the target
    event: Event
    steps: int
    visibility: tuple[VisibilityRecord, ...]
