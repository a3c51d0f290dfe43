"""Results of completed units, read from the output folders of their commands."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rocket_hf.analysis.depth_report import CONSTANT, RUN, TEACHER, UNTRAINED
from rocket_hf.evaluation.report import read_report
from rocket_hf.training.journal import read_journal

from .curves import final_mean, mean_loss_curve
from .study_folder import read_json_file
from .study_units import Unit

Values = dict[str, Any]


def read_unit_result(unit: Unit) -> Values:
    readers: dict[str, Callable[[Path], Values]] = {
        "record": read_recording,
        "train": read_training,
        "evaluate": read_evaluation,
        "probe": read_probe,
    }
    reader = readers.get(unit.kind)
    return reader(unit.out) if reader else {}


def read_recording(out: Path) -> Values:
    """Return the numbers of recorded episodes and frames, and of the expert's failed attempts."""
    progress = read_json_file(out / "meta" / "simulation.json")["progress"]
    return {"demonstrations": progress["episodes"], "frames": progress["frames"], "failed": progress["dropped"]}


def read_training(out: Path) -> Values:
    """Return the mean losses of the last tenth of the steps; alignment is the mean over layer pairs."""
    steps = [record for record in read_journal(out / "journal.jsonl") if "loss" in record]
    losses = {kind: mean_loss_curve(steps, f"{kind}/") for kind in ("action", "alignment")}
    return {f"{kind}_loss": final_mean(curve) if curve else None for kind, curve in losses.items()}


def read_evaluation(out: Path) -> Values:
    episodes = read_report(out)["episodes"]
    return {"episodes": [[episode["task"], episode["seed"], episode["success"]] for episode in episodes]}


def read_probe(out: Path) -> Values:
    """Return the relative depth error of the policy, its untrained weights, the teacher and the best constant."""
    rows = [row for row in read_json_file(out / "depth.json")["layers"] if row["selected"]]
    kinds = {RUN: "", UNTRAINED: "untrained_", TEACHER: "teacher_", CONSTANT: "constant_"}
    errors: Values = {}
    for row in rows:
        name = f"{kinds[row['kind']]}depth_error"
        errors[name] = min(row["relative_error"], errors.get(name, math.inf))
    return errors
