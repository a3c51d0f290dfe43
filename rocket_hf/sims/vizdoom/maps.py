"""Rooms generated from a seed, with walls, pillars and four objects of different kinds, and their WAD files.

The WAD file contains text maps (UDMF, namespace "zdoom"), which the engine reads without a node builder.
"""

import math
import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rocket_hf.errors import UserError

# Kinds of objects: their numbers in Doom's editors, and their scale. Their colors distinguish them from any side and at
# any distance.
KINDS = {
    "golden face": (2013, 3.0), "green sphere": (2022, 3.0), "medikit": (2012, 3.0), "blue armour": (2019, 3.0),
    "red column": (33, 1.5), "burning barrel": (70, 1.5), "big tree": (54, 1.0), "tech lamp": (85, 1.8),
}  # fmt: skip
OBJECTS_PER_ROOM = 4  # all of different kinds
PLAYER_START = 1  # number of the player's start, which the engine requires

WALLS = ("BRICK1", "STONE2", "METAL1", "GRAY1", "BROWN1", "TEKWALL4")
FLOORS = ("FLOOR4_8", "FLOOR0_1", "FLOOR5_1", "MFLR8_1", "FLOOR7_1")
CEILINGS = ("CEIL3_5", "FLAT5_4", "CEIL5_1")

SIDES = (448, 640)  # range of a room's sides in map units; the player is 32 wide and 56 tall
PILLAR_HALF_SIDE = 32
CLEARANCE = 72  # distance of a start to walls, objects and pillars
CELL_SIDE, JITTER = 144, 16  # each cell contains at most one object or pillar, near its center

Point = tuple[float, float]


@dataclass(frozen=True)
class RoomObject:
    """An object of a room."""

    kind: str
    position: Point


@dataclass(frozen=True)
class Pose:
    """Position and direction of the player."""

    position: Point
    angle: float  # degrees, counter-clockwise from east

    def bearing(self, point: Point) -> float:
        """Return the direction of a point in degrees to the left of this pose's direction, in -180..180."""
        direction = math.degrees(math.atan2(point[1] - self.position[1], point[0] - self.position[0]))
        return (direction - self.angle + 180) % 360 - 180


@dataclass(frozen=True)
class Room:
    """Geometry, objects and textures of a room."""

    seed: int
    width: int
    depth: int
    pillars: tuple[Point, ...]  # their centers
    objects: tuple[RoomObject, ...]
    wall: str
    floor: str
    ceiling: str
    light: int

    @property
    def name(self) -> str:
        """Name of the room's map, at most eight characters long."""
        return f"R{self.seed:07d}"

    def is_free(self, point: Point, margin: float = CLEARANCE) -> bool:
        is_inside = margin <= point[0] <= self.width - margin and margin <= point[1] <= self.depth - margin
        occupied = [item.position for item in self.objects] + list(self.pillars)
        return is_inside and all(math.dist(point, other) >= margin for other in occupied)

    def poses(self, rng: random.Random) -> Iterator[Pose]:
        """Yield random free poses without end."""
        while True:
            position = (rng.uniform(0, self.width), rng.uniform(0, self.depth))
            if self.is_free(position):
                yield Pose(position, rng.uniform(0, 360))


def make_room(seed: int) -> Room:
    if not 0 <= seed < 10**7:
        raise UserError(f"the seed of a room must have at most seven digits and not be negative, got {seed}")
    rng = random.Random(seed)
    width, depth = rng.randrange(SIDES[0], SIDES[1], 32), rng.randrange(SIDES[0], SIDES[1], 32)
    positions = random_positions(rng, width, depth)
    pillars = tuple(next(positions) for _ in range(rng.randrange(4)))
    objects = tuple(RoomObject(kind, next(positions)) for kind in rng.sample(sorted(KINDS), OBJECTS_PER_ROOM))
    appearance = rng.choice(WALLS), rng.choice(FLOORS), rng.choice(CEILINGS), rng.randrange(144, 256, 16)
    return Room(seed, width, depth, pillars, objects, *appearance)


def random_positions(rng: random.Random, width: int, depth: int) -> Iterator[Point]:
    """Yield random positions apart from the walls and from each other: one per cell of a grid, near its center."""
    columns, rows = (side // CELL_SIDE for side in (width, depth))
    cells = [(column, row) for column in range(columns) for row in range(rows)]
    for column, row in rng.sample(cells, len(cells)):
        x, y = ((number + 0.5) * side / count for number, side, count in ((column, width, columns), (row, depth, rows)))
        yield x + rng.uniform(-JITTER, JITTER), y + rng.uniform(-JITTER, JITTER)


def write_wad(rooms: Sequence[Room]) -> bytes:
    """Return a WAD file with one map for each room."""
    lumps = []
    for room in rooms:
        lumps += [(room.name, b""), ("TEXTMAP", format_map(room).encode()), ("ENDMAP", b"")]
    contents = b"".join(data for _, data in lumps)
    directory, offset = b"", 12
    for name, data in lumps:
        directory += struct.pack("<ii8s", offset, len(data), name.encode())
        offset += len(data)
    return struct.pack("<4sii", b"PWAD", len(lumps), offset) + contents + directory


def format_map(room: Room) -> str:
    """Return the text map of a room. Front sides face inwards: the room is clockwise, pillars counter-clockwise."""
    corners = [(0, 0), (0, room.depth), (room.width, room.depth), (room.width, 0)]
    loops = [corners] + [pillar_corners(center) for center in room.pillars]
    surfaces: dict[str, str | float] = {
        "texturefloor": room.floor,
        "textureceiling": room.ceiling,
        "lightlevel": room.light,
    }
    blocks = [
        format_block("sector", heightfloor=0, heightceiling=192, **surfaces),
        format_block("sidedef", sector=0, texturemiddle=room.wall),
    ]
    first = 0
    for loop in loops:
        blocks += [format_block("vertex", x=float(x), y=float(y)) for x, y in loop]
        ends = [(first + number, first + (number + 1) % len(loop)) for number in range(len(loop))]
        blocks += [format_block("linedef", v1=start, v2=end, sidefront=0, blocking=True) for start, end in ends]
        first += len(loop)
    start = next(room.poses(random.Random(room.seed)))
    blocks.append(format_thing(PLAYER_START, 1.0, start.position))
    blocks += [format_thing(*KINDS[item.kind], item.position) for item in room.objects]
    return 'namespace = "zdoom";\n' + "".join(blocks)


def pillar_corners(center: Point) -> list[Point]:
    (x, y), half = center, PILLAR_HALF_SIDE
    return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]


def format_thing(number: int, scale: float, position: Point) -> str:
    """Return a block of the map for an object or a player's start."""
    skills = {f"skill{level}": True for level in range(1, 6)}
    scales = {"scalex": scale, "scaley": scale}
    x, y = position
    return format_block("thing", x=x, y=y, angle=0, type=number, single=True, **skills, **scales)


def format_block(name: str, **values: str | float | bool) -> str:
    assignments = " ".join(f"{key} = {format_udmf_value(value)};" for key, value in values.items())
    return f"{name} {{ {assignments} }}\n"


def format_udmf_value(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else repr(value)
