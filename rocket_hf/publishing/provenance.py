"""Facts for the card about a policy's origin: base model, datasets, training run, teacher.

They are read from the run's files and from the Hub cache. Nothing is downloaded, and they contain no path of this
machine.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rocket_hf.convert.write import REPORT
from rocket_hf.errors import UserError
from rocket_hf.hub import REPO_ID, HubSource, cached_commit, cached_file, parse_source
from rocket_hf.hub_cards.facts import Provenance, Source, TeacherFacts, TrainingFacts
from rocket_hf.teachers.cache_manifest import Manifest
from rocket_hf.teachers.license import KNOWN_LICENSES, UNKNOWN_LICENSE, license_note, read_license
from rocket_hf.teachers.load import local_teacher_folder
from rocket_hf.training.journal import read_journal
from rocket_hf.training.recipe import BaseRecipe, Rocket2Recipe, VLARecipe
from rocket_hf.training.recipe_files import changed_settings
from rocket_hf.training.run import JOURNAL
from rocket_hf.training.vla.resources import alignment_config

# Settings that the card shows elsewhere.
SHOWN_ELSEWHERE = ("name", "about", "policy", "teacher.", "data.datasets", "alignment", "compared_with", "run.trackers")
ALIGNMENT, ACTION, AUXILIARY = "alignment/", "action/", "auxiliary/"  # prefixes of the journal's losses
INFO = "meta/info.json"  # of a LeRobot dataset
FIRST_PROJECTOR_WEIGHT = "alignment_head.projectors.0.fc1.weight"


def build_provenance(
    recipe: BaseRecipe | None,
    policy: Path | None,
    run: Path | None,
    checkpoint: Path | None,
    *,
    base: str | None = None,
    license: str | None = None,
    is_rocket2: bool = False,
) -> Provenance:
    """Collect the facts of a run and its policy. `base` (OWNER/NAME[@REVISION]) and `license` override the run's."""
    if base is not None:
        source = parse_source(base, "base model")
        base_model: Source | None = Source(source.id, source.revision)
    else:
        base_model = base_of(recipe) if recipe else converted_from(policy) if is_rocket2 else None
    if base_model is None and not is_rocket2:
        raise UserError("the base model on the Hub is unknown: pass --base OWNER/NAME")
    license = license or (base_license(recipe) if recipe else None)
    if license is None:
        name = f"the base model {base_model.id}" if base_model else "this policy"
        raise UserError(f"the license of {name} is unknown: pass --license")
    return Provenance(
        license=license,
        base_model=base_model,
        datasets=datasets_of(recipe) if recipe else [],
        training=training_facts(recipe, run, checkpoint) if recipe and run else None,
        control_rate=control_rate(recipe) if recipe else None,
    )


def training_facts(recipe: BaseRecipe, run: Path, checkpoint: Path | None) -> TrainingFacts:
    records = read_journal(run / JOURNAL)
    steps = [record for record in records if "loss" in record]
    rows = [(name, value) for name, value in changed_settings(recipe) if not name.startswith(SHOWN_ELSEWHERE)]
    return TrainingFacts(
        recipe=recipe.name,
        about=recipe.about,
        steps=steps[-1]["step"] if steps else recipe.run.steps,
        batch_size=recipe.run.batch_size,
        settings=rows,
        pairs=layer_pairs(recipe, checkpoint),
        curves=loss_curves(steps),
        teacher=teacher_facts(recipe) if isinstance(recipe, VLARecipe) and recipe.alignment is not None else None,
        compute=compute_facts(records, len(steps) * recipe.run.batch_size, validation_error(recipe)),
    )


def layer_pairs(recipe: BaseRecipe, checkpoint: Path | None) -> list[tuple[int, int, int | None]]:
    if not isinstance(recipe, VLARecipe) or recipe.alignment is None:
        return []
    students, teachers = recipe.alignment.student_layers, recipe.alignment.teacher_layers
    hidden = recipe.alignment.hidden_width or projector_hidden_width(checkpoint)
    if hidden is None:
        return [(student, teacher, None) for student, teacher in zip(students, teachers, strict=True)]
    widths = alignment_config(recipe, hidden).widths()
    return list(zip(students, teachers, widths, strict=True))


def projector_hidden_width(checkpoint: Path | None) -> int | None:
    """Return the hidden width of the projector in a checkpoint, or None if it is unknown."""
    if checkpoint is None:
        return None
    path = checkpoint / "model.safetensors"
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            return file.get_slice(FIRST_PROJECTOR_WEIGHT).get_shape()[0] if FIRST_PROJECTOR_WEIGHT in names else None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}): publish another checkpoint of the run") from error


def loss_curves(steps: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Return the losses by step; alignment losses as the mean over the layer pairs. Skipped steps are left out."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in (record for record in steps if not record.get("skipped")):
        values = {name: value for name, value in record.items() if name.startswith((ACTION, AUXILIARY))}
        alignment = [value for name, value in record.items() if name.startswith(ALIGNMENT)]
        values |= {"alignment (mean)": statistics.fmean(alignment)} if alignment else {}
        for name, value in values.items():
            curves.setdefault(name, []).append((record["step"], value))
    return curves


def teacher_facts(recipe: VLARecipe) -> TeacherFacts:
    name, revision = recipe.teacher.name, recipe.teacher.revision
    if recipe.teacher.caches and Path(recipe.teacher.caches[0]).is_dir():
        manifest = Manifest.load(Path(recipe.teacher.caches[0]))
        name, license = manifest.teacher, manifest.license
    elif folder := local_teacher_folder(name):
        name = folder.resolve().name
        license = read_license(folder, name)
    elif hub_source(name) is None:  # a folder of the machine on which the run was trained
        name, license = Path(name).name, UNKNOWN_LICENSE
    else:
        readme = cached_file(f"{name}@{revision}" if revision else name, "README.md")
        license = read_license(readme.parent, name) if readme else KNOWN_LICENSES.get(name, UNKNOWN_LICENSE)
    return TeacherFacts(name, revision, license, license_note(name, license))


def validation_error(recipe: BaseRecipe) -> tuple[str, str]:
    """Return the name and the unit of the validation error."""
    if isinstance(recipe, Rocket2Recipe):
        return "negative log-likelihood of actions in held-out rooms", "nats"
    return "distance to held-out actions", "robot units"


def compute_facts(records: list[dict[str, Any]], samples: int, error: tuple[str, str]) -> list[tuple[str, str]]:
    rows = []
    speeds = [record["samples_per_second"] for record in records if record.get("samples_per_second")]
    if speeds:
        speed = statistics.median(speeds)
        rows += [("speed", f"{speed:.3g} samples per second"), ("time", duration(samples / speed))]
    memory = [record["memory_mib"] for record in records if "memory_mib" in record]
    if memory:
        rows.append(("peak GPU memory", f"{max(memory) / 1024:.3g} GiB"))
    errors = [record["validation/error"] for record in records if "validation/error" in record]
    if errors:
        name, unit = error
        rows.append((f"final {name}", f"{errors[-1]:.4g} {unit}"))
    return rows


def duration(seconds: float) -> str:
    return f"{seconds / 3600:.3g} hours" if seconds > 1800 else f"{seconds / 60:.3g} minutes"


def hub_source(name: str) -> HubSource | None:
    """Return the Hub repository of a recipe's policy or dataset; None for a folder, also of another machine."""
    if Path(name).is_dir() or not REPO_ID.fullmatch(name.partition("@")[0]):
        return None
    return parse_source(name)


def base_of(recipe: BaseRecipe) -> Source | None:
    """Return the Hub repository that a run started from, or that its local base policy was converted from.

    None for a policy that was trained from scratch, and for a local base policy of unknown origin.
    """
    if not recipe.policy:
        return None
    if source := hub_source(recipe.policy):
        return Source(source.id, source.revision or cached_commit(recipe.policy, "config.json"))
    return converted_from(Path(recipe.policy))


def converted_from(folder: Path | None) -> Source | None:
    """Return the Hub repository that a policy was converted from, according to its conversion report."""
    report = folder / REPORT if folder is not None else None
    if report is None or not report.is_file():
        return None
    values = read_json_object(report)
    return Source(values["source"], values["revision"]) if "/" in str(values.get("source")) else None


def datasets_of(recipe: BaseRecipe) -> list[Source]:
    """Return the datasets on the Hub that a run was trained on, without local folders."""
    sources = []
    for dataset in recipe.data.datasets:
        if source := hub_source(dataset.id):
            sources.append(Source(source.id, source.revision or cached_commit(dataset.id, INFO, "dataset")))
    return sources


def control_rate(recipe: BaseRecipe) -> float | None:
    """Return the frames per second of the run's first dataset, or None if its files are not on this machine."""
    for dataset in recipe.data.datasets[:1]:
        path = cached_file(dataset.id, INFO, "dataset") if hub_source(dataset.id) else Path(dataset.id) / INFO
        if path is not None and path.is_file():
            return float(read_json_object(path)["fps"])
    return None


def base_license(recipe: BaseRecipe) -> str | None:
    """Return the license in the README.md of the base policy, or None if it is unknown."""
    if not recipe.policy:
        return None
    folder: Path | None = Path(recipe.policy)
    if hub_source(recipe.policy):
        readme = cached_file(recipe.policy, "README.md")
        folder = readme.parent if readme is not None else None
    if folder is None:
        return None
    license = read_license(folder, recipe.policy)
    return None if license == UNKNOWN_LICENSE else license


def read_json_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore the file") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} contains no JSON object: restore the file")
    return values
