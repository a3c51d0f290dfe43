"""What a run's own files tell for the card of what it made. Nothing is downloaded, and no path of this machine told."""

import json
import statistics
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open

from rocket_hf.convert.write import REPORT
from rocket_hf.hub_cards.facts import Source, Teacher, Training
from rocket_hf.teachers.cache_manifest import Manifest
from rocket_hf.teachers.license import KNOWN, UNKNOWN, license_note, read_license
from rocket_hf.teachers.load import here
from rocket_hf.training.journal import read_journal
from rocket_hf.training.recipe import Recipe
from rocket_hf.training.recipe_files import changed
from rocket_hf.training.run import JOURNAL
from rocket_hf.training.vla.sources import alignment_config

TOLD_ELSEWHERE = ("name", "about", "policy", "teacher.", "data.datasets", "alignment", "compared_with", "run.trackers")
ALIGNED, ACTION, AUXILIARY = "alignment/", "action/", "auxiliary/"
HIDDEN = "alignment_head.projectors.0.fc1.weight"


def training_of(recipe: Recipe, run: Path, checkpoint: Path | None) -> Training:
    records = read_journal(run / JOURNAL)
    steps = [record for record in records if "loss" in record]
    rows = [(name, value) for name, value in changed(recipe) if not name.startswith(TOLD_ELSEWHERE)]
    return Training(
        recipe=recipe.name,
        about=recipe.about,
        steps=steps[-1]["step"] if steps else recipe.run.steps,
        batch_size=recipe.run.batch_size,
        settings=rows,
        pairs=layer_pairs(recipe, checkpoint),
        curves=curves_of(steps),
        teacher=teacher_of(recipe) if recipe.alignment is not None else None,
        compute=compute_of(records, len(steps) * recipe.run.batch_size, error_of(recipe)),
    )


def layer_pairs(recipe: Recipe, checkpoint: Path | None) -> list[tuple[int, int, int | None]]:
    if recipe.alignment is None:
        return []
    students, teachers = recipe.alignment.student_layers, recipe.alignment.teacher_layers
    hidden = recipe.alignment.hidden_width or hidden_width(checkpoint)
    if hidden is None:
        return [(student, teacher, None) for student, teacher in zip(students, teachers, strict=True)]
    widths = alignment_config(recipe, hidden).widths()
    return list(zip(students, teachers, widths, strict=True))


def hidden_width(checkpoint: Path | None) -> int | None:
    """Of the projector in a checkpoint."""
    if checkpoint is None:
        return None
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        return file.get_slice(HIDDEN).get_shape()[0] if HIDDEN in file.keys() else None  # noqa: SIM118


def curves_of(steps: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """The losses by step, those of the layer pairs as their mean; steps that were skipped have none."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in (record for record in steps if not record.get("skipped")):
        values = {name: value for name, value in record.items() if name.startswith((ACTION, AUXILIARY))}
        aligned = [value for name, value in record.items() if name.startswith(ALIGNED)]
        values |= {"alignment (mean)": statistics.fmean(aligned)} if aligned else {}
        for name, value in values.items():
            curves.setdefault(name, []).append((record["step"], value))
    return curves


def teacher_of(recipe: Recipe) -> Teacher:
    name, revision = recipe.teacher.name, recipe.teacher.revision
    if recipe.teacher.caches and Path(recipe.teacher.caches[0]).is_dir():
        manifest = Manifest.load(Path(recipe.teacher.caches[0]))
        name, license = manifest.teacher, manifest.license
    elif folder := here(name):
        name = folder.resolve().name
        license = read_license(folder, name)
    else:
        readme = try_to_load_from_cache(name, "README.md", revision=revision)
        license = read_license(Path(readme).parent, name) if isinstance(readme, str) else KNOWN.get(name, UNKNOWN)
    return Teacher(name, revision, license, license_note(name, license))


def error_of(recipe: Recipe) -> tuple[str, str]:
    """What the error of a validation is, and its unit."""
    if recipe.goals is not None:
        return "surprise at actions in held-out rooms", "nats"
    return "distance to held-out actions", "robot units"


def compute_of(records: list[dict[str, Any]], samples: int, error: tuple[str, str]) -> list[tuple[str, str]]:
    rows = []
    speeds = [record["samples_per_second"] for record in records if record.get("samples_per_second")]
    if speeds:
        speed = statistics.median(speeds)
        rows += [("speed", f"{speed:.3g} samples per second"), ("time", duration(samples / speed))]
    memory = [record["memory_mib"] for record in records if "memory_mib" in record]
    if memory:
        rows.append(("GPU memory, at most", f"{max(memory) / 1024:.3g} GiB"))
    errors = [record["validation/error"] for record in records if "validation/error" in record]
    if errors:
        name, unit = error
        rows.append((f"{name}, at the end", f"{errors[-1]:.4g} {unit}"))
    return rows


def duration(seconds: float) -> str:
    return f"{seconds / 3600:.3g} hours" if seconds > 1800 else f"{seconds / 60:.3g} minutes"


def base_of(recipe: Recipe) -> Source | None:
    """The Hub repository of the policy that was trained; of a folder, the one that it was converted from. A policy that
    was new has none."""
    if not recipe.policy:
        return None
    folder = Path(recipe.policy)
    if not folder.is_dir():
        name, _, revision = recipe.policy.partition("@")
        return Source(name, revision or cached_commit(name, "config.json", None, "model"))
    return converted_from(folder)


def converted_from(folder: Path | None) -> Source | None:
    """The Hub repository of a converted policy, which its report names."""
    report = folder / REPORT if folder is not None else None
    if report is None or not report.is_file():
        return None
    told = json.loads(report.read_text())
    return Source(told["source"], told["revision"]) if "/" in told["source"] else None


def datasets_of(recipe: Recipe) -> list[Source]:
    """Those on the Hub."""
    sources = []
    for dataset in recipe.data.datasets:
        name, _, revision = dataset.id.partition("@")
        if not Path(dataset.id).is_dir():
            sources.append(Source(name, revision or cached_commit(name, "meta/info.json", None, "dataset")))
    return sources


def cached_commit(name: str, file: str, revision: str | None, kind: str) -> str | None:
    """Of the snapshot in the cache, which is what the run read."""
    path = try_to_load_from_cache(name, file, revision=revision, repo_type=kind)
    return Path(path).parents[file.count("/")].name if isinstance(path, str) else None


def control_rate(recipe: Recipe) -> float | None:
    """Of the first dataset, in frames per second."""
    for dataset in recipe.data.datasets[:1]:
        name, _, revision = dataset.id.partition("@")
        path: Any = Path(dataset.id) / "meta" / "info.json"
        if not path.is_file():
            path = try_to_load_from_cache(name, "meta/info.json", revision=revision or None, repo_type="dataset")
        if isinstance(path, str | Path):
            return float(json.loads(Path(path).read_text())["fps"])
    return None


def base_license(recipe: Recipe) -> str | None:
    """As the README beside the base's weights states it."""
    if not recipe.policy:
        return None
    folder = Path(recipe.policy)
    if not folder.is_dir():
        name, _, revision = recipe.policy.partition("@")
        readme = try_to_load_from_cache(name, "README.md", revision=revision or None)
        if not isinstance(readme, str):
            return None
        folder = Path(readme).parent
    license = read_license(folder, recipe.policy)
    return None if license == UNKNOWN else license
