"""A small study, and folders with synthetic results of it."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rocket_hf.study.study_folder import StudyFolder, start_study
from rocket_hf.study.study_plan import StudyPlan
from rocket_hf.study.study_units import Unit, UnitPlanner

PAIRS = {"alignment.student_layers": [2, 3, 4], "alignment.teacher_layers": [2, 3, 4]}


def study_values(**changes: Any) -> dict[str, Any]:
    """Return the content of a study file with four variants in one setting."""
    setting = {"environment": "metaworld:heights=0..0.12,cameras=corner2", "tasks": ["button-press-topdown-v3"]}
    return {
        "name": "small",
        "question": "Does alignment help?",
        "seeds": "100..111",
        "starts": 100,
        "headroom": "ceiling - none",
        "settings": {"S2": setting},
        "variants": {
            "none": {},
            "ceiling": {"environment": "state=object"},
            "rocket": {"recipe": "rocket", "teacher": "embedded", "set": PAIRS},
            "shared": {"recipe": "shared", "teacher": "embedded", "set": PAIRS},
        },
        "phases": {
            "P1": {"question": "What is there to gain?", "settings": ["S2"], "variants": ["none", "ceiling"],
                   "primary": "ceiling - none"},
            "P3": {"question": "What does alignment gain?", "best_of": "P1", "variants": ["none", "rocket"],
                   "primary": "rocket - none"},
        },
    } | changes  # fmt: skip


def write_study(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(study_values(**changes), sort_keys=False))
    return path


def new_folder(folder: Path, **changes: Any) -> StudyFolder:
    folder.mkdir(parents=True, exist_ok=True)
    return start_study(write_study(folder / "small.yaml", **changes), folder / "out", is_quick=False)


def plan_of(folder: StudyFolder) -> StudyPlan:
    return StudyPlan(folder.study, UnitPlanner(folder.study, folder.path), folder.results)


def complete(folder: StudyFolder, unit: Unit, **values: Any) -> None:
    common = {"unit": unit.name, "command": unit.command, "commit": "0" * 40, "seconds": 60.0, "cpu_seconds": 60.0}
    folder.add_result(unit.name, common | values)


def complete_phase(folder: StudyFolder, name: str, rates: dict[str, float], effects: dict[int, float]) -> None:
    """Add results of all units of a phase. The success rates are in percent, plus an effect of each seed."""
    plan = plan_of(folder)
    while remaining := plan.remaining([name]):
        for unit in remaining:
            kind, *path = unit.name.split("/")
            values: dict[str, Any] = {}
            if kind == "evaluate":
                variant, seed = path[1], int(path[2].removeprefix("seed-"))
                values["episodes"] = episodes(rates[variant] + effects.get(seed, 0.0), folder.study.starts)
            if kind == "probe":
                error = 0.05 if "rocket" in path[1] else 0.09
                values |= {"depth_error": error, "untrained_depth_error": 0.07, "constant_depth_error": 0.06}
            if kind == "train":
                values |= {"action_loss": 0.1, "alignment_loss": None if path[1] == "none" else 0.2}
            complete(folder, unit, **values)


def episodes(rate: float, starts: int) -> list[list[Any]]:
    successes = round(rate * starts / 100)
    return [["button-press-topdown-v3", 100_000 + number, number < successes] for number in range(starts)]


def noise(seeds: list[int], deviation: float, number: int = 0) -> dict[int, float]:
    """Return an effect of each seed in points, with a mean of zero."""
    values = np.random.default_rng(number).normal(0, deviation, len(seeds))
    return dict(zip(seeds, (values - values.mean()).tolist(), strict=True))
