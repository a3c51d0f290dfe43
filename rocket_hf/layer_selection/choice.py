"""Layer pairs listed by the user, names of the selection strategies, and checks of the user's choices."""

import difflib

from rocket_hf.errors import UserError
from rocket_hf.training.vla.layers_by_depth import LayerPair

STRATEGIES = (
    "early-to-middle+last", "uniform", "shallow", "middle", "deep", "explicit", "similarity", "cka", "mutual-knn",
)  # fmt: skip


def check_strategy(strategy: str) -> None:
    if strategy not in STRATEGIES:
        close = difflib.get_close_matches(strategy, STRATEGIES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(STRATEGIES)}"
        raise UserError(f"unknown strategy {strategy!r}: {hint}")


def explicit_pairs(students: list[int], teachers: list[int], student_depth: int, teacher_depth: int) -> list[LayerPair]:
    """Return the pairs that the user listed. Negative layers count from the end; -1 is the last layer."""
    if len(students) != len(teachers):
        raise UserError(
            f"--student-layers has {len(students)} layers and --teacher-layers has {len(teachers)}: list pairs"
        )
    pairs = [
        (number_of_block(student, student_depth, "student"), number_of_block(teacher, teacher_depth, "teacher"))
        for student, teacher in zip(students, teachers, strict=True)
    ]
    if sorted(set(pairs)) != sorted(pairs) or [pair[0] for pair in pairs] != sorted(pair[0] for pair in pairs):
        raise UserError(f"list student layers from shallow to deep without repeated pairs, got {pairs}")
    return [LayerPair(student, teacher, "listed explicitly") for student, teacher in pairs]


def number_of_block(layer: int, depth: int, model: str) -> int:
    """Return the positive number of a layer. The embeddings (layer 0) cannot be aligned."""
    number = layer + depth + 1 if layer < 0 else layer
    if not 1 <= number <= depth:
        raise UserError(f"the {model} has no layer {layer}: its layers are 1..{depth}, or -{depth}..-1")
    return number
