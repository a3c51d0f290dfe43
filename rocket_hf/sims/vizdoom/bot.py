"""Scripted player: it turns until its target is visible, then walks there around the obstacles."""

import math
from collections.abc import Sequence

from .actions import IDLE, TURNS, nearest_turn
from .maps import PILLAR_HALF_SIDE, Point, Pose, Room
from .world import REACH_DISTANCE

SEARCH_TURN = TURNS.index(30.0)  # always to the right, because the image does not show which way is shorter
MAX_WALKING_ANGLE = 20.0  # degrees between the player's direction and its path, up to which it walks
OBJECT_RADIUS = REACH_DISTANCE + 24
PILLAR_RADIUS = math.hypot(PILLAR_HALF_SIDE, PILLAR_HALF_SIDE) + 32


class Bot:
    """Scripted player of one episode. It knows the room, but it waits until it has seen its target."""

    def __init__(self, room: Room, target: int):
        self.target = room.objects[target].position
        others = [item.position for number, item in enumerate(room.objects) if number != target]
        self.obstacles: list[tuple[Point, float]] = [(position, OBJECT_RADIUS) for position in others]
        self.obstacles += [(position, PILLAR_RADIUS) for position in room.pillars]
        self.has_seen = False

    def act(self, pose: Pose, is_visible: bool) -> tuple[int, ...]:
        self.has_seen |= is_visible
        if not self.has_seen:
            return (*IDLE[:-1], SEARCH_TURN)
        left = pose.bearing(next_waypoint(pose.position, self.target, self.obstacles))
        return (int(abs(left) < MAX_WALKING_ANGLE), 0, nearest_turn(left))


def next_waypoint(start: Point, end: Point, obstacles: Sequence[tuple[Point, float]]) -> Point:
    """Return the next point to walk to: the end, or a point beside the first obstacle on the straight path."""
    length = math.dist(start, end)
    along = ((end[0] - start[0]) / length, (end[1] - start[1]) / length) if length else (1.0, 0.0)
    nearest, waypoint = length, end
    for (x, y), radius in obstacles:
        forward = (x - start[0]) * along[0] + (y - start[1]) * along[1]
        left = (y - start[1]) * along[0] - (x - start[0]) * along[1]
        if 0 < forward < nearest and abs(left) < radius:
            side = -math.copysign(radius + 8, left)
            nearest, waypoint = forward, (x - along[1] * side, y + along[0] * side)
    return waypoint
