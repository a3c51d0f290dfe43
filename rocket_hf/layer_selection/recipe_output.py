"""Output of selected layer pairs: text, a recipe, and tables and heat maps of the measured similarities."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from rocket_hf.files import write_text
from rocket_hf.training.vla.layers_by_depth import LayerPair


def pair_layers(pairs: Sequence[LayerPair]) -> dict[str, list[int]]:
    """Return the layers of the pairs by model, in the order of the pairs."""
    return {"student": [pair.student for pair in pairs], "teacher": [pair.teacher for pair in pairs]}


def format_reasons(pairs: Sequence[LayerPair]) -> list[str]:
    """Return a line for each pair with its layers and the reason for its selection."""
    width = max(len(str(pair.student)) for pair in pairs)
    return [f"student {pair.student:{width}} with teacher {pair.teacher:2}: {pair.reason}" for pair in pairs]


def format_overrides(pairs: Sequence[LayerPair]) -> str:
    """Return the --set options that give these layers to any recipe with alignment."""
    layers = pair_layers(pairs)
    return " ".join(
        f"--set alignment.{model}_layers={str(numbers).replace(' ', '')}" for model, numbers in layers.items()
    )


def format_recipe(pairs: Sequence[LayerPair], about: str, teacher: str | None) -> str:
    """Return a YAML recipe for ROCKET training with these layers, with the reasons as comments.

    `about` describes the recipe. `teacher` is a folder or Hub id; None leaves the default teacher of recipes.
    """
    layers = pair_layers(pairs)
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
    comments = "".join(f"# {line}\n" for line in format_reasons(pairs))
    return comments + yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, width=120)


def write_layer_recipe(path: Path, pairs: Sequence[LayerPair], about: str, teacher: str | None) -> None:
    write_text(path, format_recipe(pairs, about, teacher))


def write_similarity_table(folder: Path, table: np.ndarray, pairs: Sequence[LayerPair], name: str) -> None:
    """Write similarity.csv and similarity.png with the similarity of each student layer to each teacher layer.

    The first row and column of the table are those of layer 1. `name` is that of the similarity measure.
    """
    from rocket_hf.heatmap import write_heatmap, write_table

    rows, columns = ([str(index + 1) for index in range(depth)] for depth in table.shape)
    write_table(folder / "similarity.csv", table, rows, columns, "student layer")
    marked = [(pair.student - 1, pair.teacher - 1) for pair in pairs]
    labels = ("student layer", "teacher layer")
    write_heatmap(folder / "similarity.png", table, rows, columns, labels, f"{name}; dots: selected pairs", marked)


def write_change_table(folder: Path, table: np.ndarray, windows: Sequence[int], pairs: Sequence[LayerPair]) -> None:
    """Write similarity.csv and similarity.png with the similarity before and after each window of blocks.

    Each row is a window size. Columns are the student layers at which a window ends, from layer 1 on. The pairs were
    selected by the first window size.
    """
    from rocket_hf.heatmap import write_heatmap, write_table

    columns = [str(index + 1) for index in range(table.shape[1])]
    rows = [str(window) for window in windows]
    write_table(folder / "similarity.csv", table, rows, columns, "window")
    marked = [(0, pair.student - 1) for pair in pairs]
    labels = ("window in blocks", "student layer at the end of the window")
    title = "similarity before and after a window"
    write_heatmap(folder / "similarity.png", table, rows, columns, labels, title, marked)
