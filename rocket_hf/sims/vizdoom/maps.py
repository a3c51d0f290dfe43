"""Rooms made from a seed: walls, pillars and four objects of different kinds. As a WAD file, which is all the engine
needs: its text maps (UDMF, namespace "zdoom") are read without a node builder.
"""

import math
import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rocket_hf.errors import UserError

# Kinds of objects, their numbers in Doom's editors, and how much larger than in Doom they are. Each is told from the
# others by its color from any side, near and far.
KINDS = {
    "golden face": (2013, 3.0), "green sphere": (2022, 3.0), "medikit": (2012, 3.0), "blue armour": (2019, 3.0),
    "red column": (33, 1.5), "burning barrel": (70, 1.5), "big tree": (54, 1.0), "tech lamp": (85, 1.8),
}  # fmt: skip
OBJECTS = 4  # of a room, of different kinds
PLAYER = 1  # the engine wants a place to begin

WALLS = ("BRICK1", "STONE2", "METAL1", "GRAY1", "BROWN1", "TEKWALL4")
FLOORS = ("FLOOR4_8", "FLOOR0_1", "FLOOR5_1", "MFLR8_1", "FLOOR7_1")
CEILINGS = ("CEIL3_5", "FLAT5_4", "CEIL5_1")

SIDES = (448, 640)  # of a room, in units of the map; a player is 32 wide and 56 tall
PILLAR = 32  # half its side
FREE = 72  # round every object, pillar and start
CELL, SWAY = 144, 16  # at most one object or pillar is in a cell


Point = tuple[float, float]


@dataclass(frozen=True)
class Object:
    kind: str
    place: Point


@dataclass(frozen=True)
class Pose:
    place: Point
    angle: float  # degrees, counter-clockwise from east

    def bearing(self, place: Point) -> float:
        """To the left of where it looks, in degrees of -180..180."""
        to = math.degrees(math.atan2(place[1] - self.place[1], place[0] - self.place[0]))
        return (to - self.angle + 180) % 360 - 180


@dataclass(frozen=True)
class Room:
    seed: int
    width: int
    depth: int
    pillars: tuple[Point, ...]  # their middles
    objects: tuple[Object, ...]
    wall: str
    floor: str
    ceiling: str
    light: int

    @property
    def name(self) -> str:
        """Of its map: at most eight characters."""
        return f"R{self.seed:07d}"

    def is_free(self, place: Point, margin: float = FREE) -> bool:
        inside = margin <= place[0] <= self.width - margin and margin <= place[1] <= self.depth - margin
        occupied = [thing.place for thing in self.objects] + list(self.pillars)
        return inside and all(math.dist(place, other) >= margin for other in occupied)

    def poses(self, draw: random.Random) -> Iterator[Pose]:
        """Places where one can stand, looking anywhere, without end."""
        while True:
            place = (draw.uniform(0, self.width), draw.uniform(0, self.depth))
            if self.is_free(place):
                yield Pose(place, draw.uniform(0, 360))


def make_room(seed: int) -> Room:
    if not 0 <= seed < 10**7:
        raise UserError(f"the seed of a room is a number of at most seven digits, got {seed}")
    draw = random.Random(seed)
    width, depth = draw.randrange(SIDES[0], SIDES[1], 32), draw.randrange(SIDES[0], SIDES[1], 32)
    places = apart(draw, width, depth)
    pillars = tuple(next(places) for _ in range(draw.randrange(4)))
    objects = tuple(Object(kind, next(places)) for kind in draw.sample(sorted(KINDS), OBJECTS))
    looks = draw.choice(WALLS), draw.choice(FLOORS), draw.choice(CEILINGS), draw.randrange(144, 256, 16)
    return Room(seed, width, depth, pillars, objects, *looks)


def apart(draw: random.Random, width: int, depth: int) -> Iterator[Point]:
    """Places away from the walls and from each other: each in a cell of its own, not quite in the middle."""
    columns, rows = (side // CELL for side in (width, depth))
    cells = [(column, row) for column in range(columns) for row in range(rows)]
    for column, row in draw.sample(cells, len(cells)):
        x, y = ((number + 0.5) * side / count for number, side, count in ((column, width, columns), (row, depth, rows)))
        yield x + draw.uniform(-SWAY, SWAY), y + draw.uniform(-SWAY, SWAY)


def write_wad(rooms: Sequence[Room]) -> bytes:
    """A file with a map for each room, by its name."""
    lumps = [lump for room in rooms for lump in ((room.name, b""), ("TEXTMAP", text(room).encode()), ("ENDMAP", b""))]
    contents = b"".join(data for _, data in lumps)
    directory, place = b"", 12
    for name, data in lumps:
        directory += struct.pack("<ii8s", place, len(data), name.encode())
        place += len(data)
    return struct.pack("<4sii", b"PWAD", len(lumps), place) + contents + directory


def text(room: Room) -> str:
    """The map: its front sides look inwards, so the room goes round clockwise and the pillars the other way."""
    corners = [(0, 0), (0, room.depth), (room.width, room.depth), (room.width, 0)]
    loops = [corners] + [pillar_corners(middle) for middle in room.pillars]
    blocks = [block("sector", heightfloor=0, heightceiling=192, texturefloor=room.floor, textureceiling=room.ceiling,
                    lightlevel=room.light), block("sidedef", sector=0, texturemiddle=room.wall)]  # fmt: skip
    first = 0
    for loop in loops:
        blocks += [block("vertex", x=float(x), y=float(y)) for x, y in loop]
        ends = [(first + number, first + (number + 1) % len(loop)) for number in range(len(loop))]
        blocks += [block("linedef", v1=start, v2=end, sidefront=0, blocking=True) for start, end in ends]
        first += len(loop)
    start = next(room.poses(random.Random(room.seed)))
    blocks.append(thing(PLAYER, 1.0, start.place))
    blocks += [thing(*KINDS[item.kind], item.place) for item in room.objects]
    return 'namespace = "zdoom";\n' + "".join(blocks)


def pillar_corners(middle: Point) -> list[Point]:
    x, y = middle
    return [(x - PILLAR, y - PILLAR), (x + PILLAR, y - PILLAR), (x + PILLAR, y + PILLAR), (x - PILLAR, y + PILLAR)]


def thing(number: int, scale: float, place: Point) -> str:
    skills = {f"skill{level}": True for level in range(1, 6)}
    size = {"scalex": scale, "scaley": scale}
    return block("thing", x=place[0], y=place[1], angle=0, type=number, single=True, **skills, **size)


def block(name: str, **values: str | float | bool) -> str:
    written = {True: "true", False: "false"}
    lines = []
    for key, value in values.items():
        shown = written[value] if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else repr(value)
        lines.append(f"{key} = {shown};")
    return f"{name} {{ {' '.join(lines)} }}\n"
