"""Tasks of LIBERO-Plus: 10,030 variations of LIBERO's tasks, each along one of seven axes.

A task is named by suite, axis and number in the benchmark's order, such as `libero_spatial/camera/0`. The layout axis
is split in two: moved objects need only LIBERO's models, added objects need LIBERO-Plus's own models.
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
TASK_GROUPS = {
    f"{suite}/{axis}": [f"{suite}/{axis}/{number}" for number in range(count)]
    for suite, counts in TASKS.items()
    for axis, count in zip(AXES, counts, strict=True)
}
TASK_GROUPS |= {
    f"{suite}/layout": TASK_GROUPS[f"{suite}/layout-moved"] + TASK_GROUPS[f"{suite}/layout-added"] for suite in TASKS
}

VIEW_NAME = re.compile(
    r"(?P<base>.+?)(?P<language>_language_\d+)?_view_(?P<view>\d+_\d+_\d+_\d+_\d+)_initstate_(?P<robot>\d+)"
    r"(_noise_(?P<noise>\d+))?"
)
CHANGE_NAME = re.compile(r"(?P<base>.+?)_(?P<kind>light|table|tb|add|level|moved_level)_?\d+(_sample\d+)?")
AXIS_OF_KIND = {
    "light": "light",
    "table": "background",
    "tb": "background",
    "add": "layout-added",
    "level": "layout-moved",
    "moved_level": "layout-moved",
}
DEFAULT_VIEW = "0_0_100_0_0"


@dataclass(frozen=True)
class Variation:
    """Variation of a task, parsed from the benchmark's own task name."""

    base: str  # name of the varied task of LIBERO
    axis: str
    noise: int = 0  # 1 to 50: five kinds with ten severities; 0 for none

    @property
    def instruction(self) -> str:
        """LIBERO's instruction. Tasks of the axis `language` have other instructions in their descriptions."""
        return re.sub(r"^[A-Z_]+SCENE\d+_", "", self.base).replace("_", " ")


def parse_variation(name: str) -> Variation:
    view = VIEW_NAME.fullmatch(name)
    if view is None:
        change = CHANGE_NAME.fullmatch(name)
        assert change is not None, name
        return Variation(change["base"], AXIS_OF_KIND[change["kind"]])
    noise = int(view["noise"] or 0)
    is_varied = {
        "robot": view["robot"] != "0",
        "noise": noise != 0,
        "camera": view["view"] != DEFAULT_VIEW,
        "language": view["language"] is not None,
    }
    (axis,) = (axis for axis, varied in is_varied.items() if varied)
    return Variation(view["base"], axis, noise)
