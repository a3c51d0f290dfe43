"""LIBERO-Plus: 10,030 variations of LIBERO's tasks, each along one of seven axes, and what their names tell.

A task is named by suite, axis and number, `libero_spatial/camera/0`, in the benchmark's own order. Layout is two axes
here: objects that stand elsewhere need LIBERO's models alone, objects that are added need LIBERO-Plus's own.
"""

import re
from dataclasses import dataclass

AXES = ("camera", "robot", "language", "noise", "layout-moved", "light", "background", "layout-added")
NEED_ARCHIVE = AXES[5:]
TASKS = {
    "libero_spatial": (376, 350, 390, 351, 177, 292, 258, 208),
    "libero_object": (396, 398, 354, 422, 195, 297, 248, 208),
    "libero_goal": (408, 409, 410, 379, 185, 279, 281, 240),
    "libero_10": (419, 393, 383, 449, 139, 274, 289, 173),
}
GROUPS = {
    f"{suite}/{axis}": [f"{suite}/{axis}/{number}" for number in range(count)]
    for suite, counts in TASKS.items()
    for axis, count in zip(AXES, counts, strict=True)
}
GROUPS |= {f"{suite}/layout": GROUPS[f"{suite}/layout-moved"] + GROUPS[f"{suite}/layout-added"] for suite in TASKS}

SEEN_FROM = re.compile(
    r"(?P<base>.+?)(?P<language>_language_\d+)?_view_(?P<view>\d+_\d+_\d+_\d+_\d+)_initstate_(?P<robot>\d+)"
    r"(_noise_(?P<noise>\d+))?"
)
CHANGED = re.compile(r"(?P<base>.+?)_(?P<kind>light|table|tb|add|level|moved_level)_?\d+(_sample\d+)?")
AXIS_OF_KIND = {
    "light": "light",
    "table": "background",
    "tb": "background",
    "add": "layout-added",
    "level": "layout-moved",
    "moved_level": "layout-moved",
}
USUAL_VIEW = "0_0_100_0_0"


@dataclass(frozen=True)
class Variation:
    """What the benchmark's own name of a task tells."""

    base: str  # the task of LIBERO's that is varied
    axis: str
    noise: int = 0  # 1 to 50: five kinds of ten severities

    @property
    def sentence(self) -> str:
        """LIBERO's instruction; the axis `language` has others, in its descriptions."""
        return re.sub(r"^[A-Z_]+SCENE\d+_", "", self.base).replace("_", " ")


def variation(name: str) -> Variation:
    seen = SEEN_FROM.fullmatch(name)
    if seen is None:
        changed = CHANGED.fullmatch(name)
        assert changed is not None, name
        return Variation(changed["base"], AXIS_OF_KIND[changed["kind"]])
    noise = int(seen["noise"] or 0)
    varied = {
        "robot": seen["robot"] != "0",
        "noise": noise != 0,
        "camera": seen["view"] != USUAL_VIEW,
        "language": seen["language"] is not None,
    }
    (axis,) = (axis for axis, here in varied.items() if here)
    return Variation(seen["base"], axis, noise)
