"""A choice of layers as text, as a recipe and as files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from rocket_hf.files import write_text

from .choice import Pair


def layers_of(pairs: Sequence[Pair]) -> dict[str, list[int]]:
    return {"student": [pair.student for pair in pairs], "teacher": [pair.teacher for pair in pairs]}


def reasons(pairs: Sequence[Pair]) -> list[str]:
    width = max(len(str(pair.student)) for pair in pairs)
    return [f"student {pair.student:{width}} with teacher {pair.teacher:2}: {pair.reason}" for pair in pairs]


def as_changes(pairs: Sequence[Pair]) -> str:
    """What turns any recipe with alignment into one with these layers."""
    layers = layers_of(pairs)
    return " ".join(
        f"--set alignment.{whose}_layers={str(numbers).replace(' ', '')}" for whose, numbers in layers.items()
    )


def as_recipe(pairs: Sequence[Pair], about: str, teacher: str | None) -> str:
    """YAML for `training/train.py --recipe FILE`: ROCKET with these layers; the reasons as comments."""
    layers = layers_of(pairs)
    recipe = {
        "about": about,
        "alignment": {
            "student_layers": layers["student"],
            "teacher_layers": layers["teacher"],
            "projector": "shared",
            "nesting": "increasing" if len(pairs) > 1 else "none",
            "weight": 0.5,
        },
    } | ({"teacher": {"name": teacher}} if teacher else {})
    comments = "".join(f"# {line}\n" for line in reasons(pairs))
    return comments + yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, width=120)


def write_recipe(path: Path, pairs: Sequence[Pair], about: str, teacher: str | None) -> None:
    write_text(path, as_recipe(pairs, about, teacher))


def write_similarities(folder: Path, table: np.ndarray, pairs: Sequence[Pair], name: str) -> None:
    """similarity.csv and similarity.png, of each student layer with each teacher layer."""
    from rocket_hf.heatmap import write_heatmap, write_table

    rows, columns = ([str(layer + 1) for layer in range(side)] for side in table.shape)
    write_table(folder / "similarity.csv", table, rows, columns, "student layer")
    marked = [(pair.student - 1, pair.teacher - 1) for pair in pairs]
    labels = ("student layer", "teacher layer")
    write_heatmap(folder / "similarity.png", table, rows, columns, labels, f"{name}; dots: the pairs", marked)


def write_changes(folder: Path, table: np.ndarray, windows: Sequence[int], pairs: Sequence[Pair]) -> None:
    """The same files, of each window of blocks that ends with each student layer; the pairs are of the first."""
    from rocket_hf.heatmap import write_heatmap, write_table

    columns = [str(layer + 1) for layer in range(table.shape[1])]
    rows = [str(window) for window in windows]
    write_table(folder / "similarity.csv", table, rows, columns, "window")
    marked = [(0, pair.student - 1) for pair in pairs]
    labels = ("window, in blocks", "student layer at its end")
    write_heatmap(folder / "similarity.png", table, rows, columns, labels, "similarity before and after", marked)
