"""A scripted player: it looks round until it sees its target, turns to it, and walks there past what is in the way."""

import math
from collections.abc import Sequence

from .actions import REST, TURNS, nearest_turn
from .maps import PILLAR, Point, Pose, Room
from .world import REACH

SEARCH = TURNS.index(30.0)  # always to the same side: which way is shorter cannot be seen
AHEAD = 20.0  # degrees off its way within which it walks
ROUND_OBJECT = REACH + 24
ROUND_PILLAR = math.hypot(PILLAR, PILLAR) + 32


class Bot:
    def __init__(self, room: Room, target: int):
        self.target = room.objects[target].place
        others = [item.place for number, item in enumerate(room.objects) if number != target]
        self.obstacles: list[tuple[Point, float]] = [(place, ROUND_OBJECT) for place in others]
        self.obstacles += [(place, ROUND_PILLAR) for place in room.pillars]
        self.has_seen = False

    def act(self, pose: Pose, visible: bool) -> tuple[int, ...]:
        self.has_seen |= visible
        if not self.has_seen:
            return (*REST[:-1], SEARCH)
        left = pose.bearing(way_to(pose.place, self.target, self.obstacles))
        return (int(abs(left) < AHEAD), 0, nearest_turn(left))


def way_to(start: Point, end: Point, obstacles: Sequence[tuple[Point, float]]) -> Point:
    """Where to walk to first: the end, or a place beside the first obstacle on the straight way."""
    length = math.dist(start, end)
    along = ((end[0] - start[0]) / length, (end[1] - start[1]) / length) if length else (1.0, 0.0)
    first, passing = length, end
    for (x, y), radius in obstacles:
        forward = (x - start[0]) * along[0] + (y - start[1]) * along[1]
        left = (y - start[1]) * along[0] - (x - start[0]) * along[1]
        if 0 < forward < first and abs(left) < radius:
            side = -math.copysign(radius + 8, left)
            first, passing = forward, (x - along[1] * side, y + along[0] * side)
    return passing
