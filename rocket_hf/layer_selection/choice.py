"""What every strategy comes to: pairs of layers, from shallow to deep, each with the reason for it."""

import difflib
from dataclasses import dataclass

from rocket_hf.errors import UserError

STRATEGIES = (
    "early-to-middle+last", "uniform", "shallow", "middle", "deep", "explicit", "similarity", "cka", "mutual-knn",
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    student: int  # layer i: the stream after block i
    teacher: int
    reason: str


def check_strategy(strategy: str) -> None:
    if strategy not in STRATEGIES:
        close = difflib.get_close_matches(strategy, STRATEGIES, n=1)
        end = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(STRATEGIES)}"
        raise UserError(f"there is no strategy {strategy!r}: {end}")


def check_count(pairs: int, student_depth: int, teacher_depth: int) -> None:
    """That there are enough layers for so many pairs of different ones."""
    if not 1 <= pairs <= min(student_depth, teacher_depth):
        raise UserError(
            f"{pairs} pairs cannot be made of {student_depth} student and {teacher_depth} teacher layers: "
            f"ask for 1 to {min(student_depth, teacher_depth)} pairs"
        )


def explicit_pairs(students: list[int], teachers: list[int], student_depth: int, teacher_depth: int) -> list[Pair]:
    """Those that the user names; the layer -1 is the last one."""
    if len(students) != len(teachers):
        raise UserError(f"layers are named in pairs: got {len(students)} of the student and {len(teachers)} of the "
                         "teacher")  # fmt: skip
    named = [
        (resolved(student, student_depth, "student"), resolved(teacher, teacher_depth, "teacher"))
        for student, teacher in zip(students, teachers, strict=True)
    ]
    if sorted(set(named)) != sorted(named) or [pair[0] for pair in named] != sorted(pair[0] for pair in named):
        raise UserError(f"student layers go from shallow to deep and no pair may repeat, got {named}")
    return [Pair(student, teacher, "named by hand") for student, teacher in named]


def resolved(layer: int, depth: int, whose: str) -> int:
    number = layer + depth + 1 if layer < 0 else layer
    if not 1 <= number <= depth:
        raise UserError(f"the {whose} has no layer {layer}: its layers are 1..{depth}, or -{depth}..-1")
    return number
