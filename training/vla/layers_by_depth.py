"""Layer selection strategies that depend only on the depth of the models."""

from collections.abc import Callable
from dataclasses import dataclass

from rocket_hf.errors import UserError

OTHER_CHOICE = "set alignment.pairs=N to choose N pairs by depth, or let `rocket-hf layers` suggest pairs"

LayersWithReasons = tuple[list[int], list[str]]  # layers from shallow to deep, and the reason for each


@dataclass(frozen=True)
class LayerPair:
    """Student layer and teacher layer to align, with the reason for their selection."""

    student: int  # layer i: the residual stream after block i
    teacher: int
    reason: str


def check_count(pairs: int, student_depth: int, teacher_depth: int) -> None:
    """Raise UserError unless there are enough layers for `pairs` pairs of distinct layers."""
    if not 1 <= pairs <= min(student_depth, teacher_depth):
        raise UserError(
            f"{pairs} pairs are not possible with {student_depth} student and {teacher_depth} teacher layers: "
            f"set --pairs to 1..{min(student_depth, teacher_depth)} (in a recipe: alignment.pairs)"
        )


def uniform(depth: int, count: int) -> LayersWithReasons:
    """Return layers spread evenly over all blocks, including the last.

    If omitting every n-th layer yields `count` layers, that is done; otherwise equidistant positions are rounded.
    """
    omitted = depth - count
    if depth % count and depth % omitted == 0:
        stride = depth // omitted
        layers = [layer for layer in range(1, depth + 1) if layer % stride != 1]
        return layers, [f"all but every {ordinal(stride)} layer"] * count
    layers = [int(number * depth / count + 0.5) for number in range(1, count + 1)]
    return layers, [f"number {number} of {count} equidistant layers" for number in range(1, count + 1)]


def early_to_middle_plus_last(depth: int, count: int, begin: int, end: int) -> LayersWithReasons:
    """Return `count` - 1 layers from `begin` to the middle at equal steps, and the layer `end`.

    The step would allow one more layer on either side, which reproduces the layer lists of the ROCKET paper.
    """
    step = max(1, depth // (count + 1))
    first = min(begin, depth - count + 1)
    layers = [first + number * step for number in range(count - 1)]
    every = "every layer" if step == 1 else f"every {ordinal(step)} layer"
    return [*layers, end], [f"early to middle, {every} from {first}"] * (count - 1) + ["the last"]


def student_end(depth: int, count: int) -> int:
    """Return the last block, or the second to last if layers are skipped, as in ROCKET for OpenVLA's 32 blocks."""
    return depth if depth < 2 * (count + 1) else depth - 1


def early_to_middle_pairs(
    student_depth: int, teacher_depth: int, count: int
) -> tuple[LayersWithReasons, LayersWithReasons]:
    """Return the student and teacher layers of ROCKET, which begins at student layer 2 and teacher layer 3."""
    student = early_to_middle_plus_last(student_depth, count, 2, student_end(student_depth, count))
    return student, early_to_middle_plus_last(teacher_depth, count, 3, teacher_depth)


def shallow(depth: int, count: int) -> LayersWithReasons:
    return list(range(1, count + 1)), [f"one of the first {count}"] * count


def middle(depth: int, count: int) -> LayersWithReasons:
    first = (depth - count) // 2 + 1
    return list(range(first, first + count)), [f"one of the middle {count}"] * count


def deep(depth: int, count: int) -> LayersWithReasons:
    return list(range(depth - count + 1, depth + 1)), [f"one of the last {count}"] * count


# Strategies that select the student layers and the teacher layers in the same way.
SYMMETRIC: dict[str, Callable[[int, int], LayersWithReasons]] = {
    "uniform": uniform, "shallow": shallow, "middle": middle, "deep": deep,
}  # fmt: skip
EARLY_TO_MIDDLE = "early-to-middle+last"
BY_DEPTH = (EARLY_TO_MIDDLE, *SYMMETRIC)


def pairs_by_depth(strategy: str, student_depth: int, teacher_depth: int, count: int) -> list[LayerPair]:
    """Select student and teacher layers by the same strategy and pair them from shallow to deep."""
    check_count(count, student_depth, teacher_depth)
    if strategy == EARLY_TO_MIDDLE:
        student, teacher = early_to_middle_pairs(student_depth, teacher_depth, count)
    else:
        student, teacher = SYMMETRIC[strategy](student_depth, count), SYMMETRIC[strategy](teacher_depth, count)
    rows = zip(*student, *teacher, strict=True)
    return [
        LayerPair(student_layer, teacher_layer, reason if reason == other else f"{reason}; teacher: {other}")
        for student_layer, reason, teacher_layer, other in rows
    ]


def ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
