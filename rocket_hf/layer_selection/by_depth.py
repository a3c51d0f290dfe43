"""Strategies that know nothing of a model but how deep it is."""

from collections.abc import Callable

from .choice import Pair, check_count

Layers = tuple[list[int], list[str]]  # from shallow to deep, and what each is


def uniform(depth: int, count: int) -> Layers:
    """Balanced over all blocks, the last among them.

    Where leaving out every n-th layer gives the number, that is done; else places of equal distance are rounded.
    """
    left_out = depth - count
    if depth % count and depth % left_out == 0:
        stride = depth // left_out
        layers = [layer for layer in range(1, depth + 1) if layer % stride != 1]
        return layers, [f"all but every {ordinal(stride)} layer"] * count
    layers = [int(place * depth / count + 0.5) for place in range(1, count + 1)]
    return layers, [f"place {place} of {count} in equal distances" for place in range(1, count + 1)]


def early_to_middle_and_last(depth: int, count: int, begin: int, end: int) -> Layers:
    """All but one of the layers from the early ones to the middle in equal steps, and one of the end.

    The step leaves room for one more at either side. With it ROCKET's hand-written lists come out.
    """
    step = max(1, depth // (count + 1))
    first = min(begin, depth - count + 1)
    layers = [first + number * step for number in range(count - 1)]
    every = "every layer" if step == 1 else f"every {ordinal(step)} layer"
    return [*layers, end], [f"early to middle, {every} from {first}"] * (count - 1) + ["the last"]


def student_end(depth: int, count: int) -> int:
    """The last block; the last but one where layers are skipped, as ROCKET has it for OpenVLA's 32 blocks."""
    return depth if depth < 2 * (count + 1) else depth - 1


def early_to_middle_pairs(student_depth: int, teacher_depth: int, count: int) -> tuple[Layers, Layers]:
    """ROCKET begins at the student's second layer and at the teacher's third."""
    student = early_to_middle_and_last(student_depth, count, 2, student_end(student_depth, count))
    return student, early_to_middle_and_last(teacher_depth, count, 3, teacher_depth)


def shallow(depth: int, count: int) -> Layers:
    return list(range(1, count + 1)), [f"one of the first {count}"] * count


def middle(depth: int, count: int) -> Layers:
    first = (depth - count) // 2 + 1
    return list(range(first, first + count)), [f"one of the middle {count}"] * count


def deep(depth: int, count: int) -> Layers:
    return list(range(depth - count + 1, depth + 1)), [f"one of the last {count}"] * count


ALIKE: dict[str, Callable[[int, int], Layers]] = {
    "uniform": uniform, "shallow": shallow, "middle": middle, "deep": deep,
}  # fmt: skip
EARLY_TO_MIDDLE = "early-to-middle+last"
BY_DEPTH = (EARLY_TO_MIDDLE, *ALIKE)


def pairs_by_depth(strategy: str, student_depth: int, teacher_depth: int, count: int) -> list[Pair]:
    """The student's and the teacher's layers by the same strategy, the first with the first and so on."""
    check_count(count, student_depth, teacher_depth)
    if strategy == EARLY_TO_MIDDLE:
        student, teacher = early_to_middle_pairs(student_depth, teacher_depth, count)
    else:
        student, teacher = ALIKE[strategy](student_depth, count), ALIKE[strategy](teacher_depth, count)
    rows = zip(*student, *teacher, strict=True)
    return [
        Pair(number, other, why if why == whys else f"{why}; of the teacher {whys}")
        for number, why, other, whys in rows
    ]


def ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
