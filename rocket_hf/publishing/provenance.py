"""Facts for the card about a policy's origin: base model, datasets, training run, teacher.

They are read from the run's files and from the Hub cache; only the card of the base model may be downloaded, for its
license. They contain no path of this machine.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rocket_hf.checkpoint_files import read_json_object
from rocket_hf.convert.write import REPORT
from rocket_hf.errors import UserError
from rocket_hf.hub import REPO_ID, HubSource, cached_commit, cached_file, parse_source, resolve
from rocket_hf.hub_cards.facts import Provenance, Source, TeacherFacts, TrainingFacts
from rocket_hf.teachers.cache_manifest import Manifest
from rocket_hf.teachers.license import KNOWN_LICENSES, UNKNOWN_LICENSE, license_note, read_license
from rocket_hf.teachers.load import EMBEDDED_TEACHERS, local_teacher_folder
from rocket_hf.training.checkpoint import read_progress
from rocket_hf.training.input_origins import read_origins
from rocket_hf.training.journal import read_journal
from rocket_hf.training.recipe import BaseRecipe, Rocket2Recipe, VLARecipe
from rocket_hf.training.recipe_files import changed_settings
from rocket_hf.training.run import JOURNAL
from rocket_hf.training.vla.resources import alignment_config

INFO = "meta/info.json"  # of a LeRobot dataset
FILES = {"model": "config.json", "dataset": INFO}  # a file that every repository of the type has
# Settings that the card shows elsewhere.
SHOWN_ELSEWHERE = ("name", "about", "policy", "teacher.", "data.datasets", "alignment", "compared_with", "run.trackers")
TARGET_SETTINGS = ("teacher.targets", "alignment.normalize_targets")
ALIGNMENT, ACTION, AUXILIARY = "alignment/", "action/", "auxiliary/"  # prefixes of the journal's losses
FIRST_PROJECTOR_WEIGHT = "alignment_head.projectors.0.fc1.weight"


class RunInputs:
    """Names in the recipe of a run, resolved to what they meant when the run was started."""

    def __init__(self, run: Path | None):
        self.origins = read_origins(run) if run is not None else {}

    def folder(self, name: str) -> Path | None:
        """Return the folder that an input was read from; None for one on the Hub. It may not exist any more."""
        if name in self.origins:
            recorded = self.origins[name]
            return Path(recorded) if recorded is not None else None
        return Path(name) if Path(name).is_dir() else None

    def hub_source(self, name: str, repo_type: str = "model") -> HubSource | None:
        """Return the Hub repository of an input, or None for a folder, also of another machine.

        A name without a record is on the Hub only if its files are in the Hub's cache: it could be a relative folder.
        """
        if self.folder(name) is not None or not REPO_ID.fullmatch(name.partition("@")[0]):
            return None
        if name in self.origins or cached_file(name, FILES[repo_type], repo_type):
            return parse_source(name)
        return None

    def card_source(self, name: str, repo_type: str = "model") -> Source | None:
        """Return the Hub repository of an input with the commit that was used."""
        source = self.hub_source(name, repo_type)
        if source is None:
            return None
        return Source(source.id, source.revision or cached_commit(name, FILES[repo_type], repo_type))


def build_provenance(
    recipe: BaseRecipe | None,
    policy: Path | None,
    run: Path | None,
    checkpoint: Path | None,
    *,
    base: str | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
    is_rocket2: bool = False,
    missing: Sequence[str] = (),
) -> Provenance:
    """Collect the facts of a run and its policy.

    `base`, `datasets` (each OWNER/NAME[@REVISION]) and `license` override the run's. One UserError names all facts that
    are missing, beside the sentences in `missing`.
    """
    inputs = RunInputs(run)
    base_model, license, missing_facts = find_base_and_license(recipe, policy, inputs, base, license, is_rocket2)
    if all_missing := [*missing, *missing_facts]:
        raise UserError("; ".join(all_missing))
    assert license is not None
    return Provenance(
        license=license,
        base_model=base_model,
        datasets=[to_source(name, "dataset") for name in datasets] or (datasets_of(recipe, inputs) if recipe else []),
        training=training_facts(recipe, run, checkpoint, inputs) if recipe and run else None,
        control_rate=control_rate(recipe, inputs) if recipe else None,
    )


def find_base_and_license(
    recipe: BaseRecipe | None,
    policy: Path | None,
    inputs: RunInputs,
    base: str | None,
    license: str | None,
    is_rocket2: bool,
) -> tuple[Source | None, str | None, list[str]]:
    """Return the base model, the license, and a sentence for each of them that is missing."""
    if base is not None:
        base_model: Source | None = to_source(base, "base model")
    else:
        base_model = base_of(recipe, inputs) if recipe else converted_from(policy) if is_rocket2 else None
    missing = []
    if base_model is None and not is_rocket2:
        missing.append("the base model on the Hub is unknown: pass --base OWNER/NAME")
    license = license or (base_license(recipe, inputs) if recipe else None)
    license = license or (card_license(base_model) if base_model else None)
    if license is None:
        name = f"the base model {base_model.id}" if base_model else "this policy"
        missing.append(f"the license of {name} is unknown: pass --license")
    return base_model, license, missing


def to_source(text: str, kind: str) -> Source:
    source = parse_source(text, kind)
    return Source(source.id, source.revision)


def training_facts(recipe: BaseRecipe, run: Path, checkpoint: Path | None, inputs: RunInputs) -> TrainingFacts:
    trained_steps = recipe.run.steps if checkpoint is None else read_progress(checkpoint).step
    records = [record for record in read_journal(run / JOURNAL) if record["step"] <= trained_steps]
    steps = [record for record in records if "loss" in record]
    rows = [
        (name, value)
        for name, value in changed_settings(recipe)
        if name in TARGET_SETTINGS or not name.startswith(SHOWN_ELSEWHERE)
    ]
    return TrainingFacts(
        recipe=recipe.name,
        about=recipe.about,
        steps=trained_steps,
        batch_size=recipe.run.batch_size,
        settings=rows,
        pairs=layer_pairs(recipe, checkpoint),
        curves=loss_curves(steps),
        teacher=teacher_facts(recipe, inputs) if isinstance(recipe, VLARecipe) and recipe.alignment else None,
        compute=compute_facts(records, trained_steps, recipe),
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


def teacher_facts(recipe: VLARecipe, inputs: RunInputs) -> TeacherFacts:
    name, revision = recipe.teacher.name, recipe.teacher.revision
    folder = local_teacher_folder(name) if name in EMBEDDED_TEACHERS else inputs.folder(name)
    if recipe.teacher.caches and Path(recipe.teacher.caches[0]).is_dir():
        manifest = Manifest.load(Path(recipe.teacher.caches[0]))
        name, license = manifest.teacher, manifest.license
    elif folder is not None:
        name = name if name in EMBEDDED_TEACHERS else folder.resolve().name
        license = read_license(folder, name)
    elif inputs.hub_source(name) is None and name not in KNOWN_LICENSES:  # a folder of another machine
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


def compute_facts(records: list[dict[str, Any]], trained_steps: int, recipe: BaseRecipe) -> list[tuple[str, str]]:
    """Return speed, memory and validation error of the first `trained_steps` steps of a run."""
    rows, samples = [], trained_steps * recipe.run.batch_size
    speeds = [record["samples_per_second"] for record in records if record.get("samples_per_second")]
    if speeds:
        speed = statistics.median(speeds)
        rows += [("speed", f"{speed:.3g} samples per second"), ("time", duration(samples / speed))]
    memory = [record["memory_mib"] for record in records if "memory_mib" in record]
    if memory:
        rows.append(("peak GPU memory", f"{max(memory) / 1024:.3g} GiB"))
    errors = [(record["step"], record["validation/error"]) for record in records if "validation/error" in record]
    if errors:
        (name, unit), (step, error) = validation_error(recipe), errors[-1]
        rows.append((name, f"{error:.4g} {unit}" + (f", at step {step}" if step != trained_steps else "")))
    return rows


def duration(seconds: float) -> str:
    return f"{seconds / 3600:.3g} hours" if seconds > 1800 else f"{seconds / 60:.3g} minutes"


def base_of(recipe: BaseRecipe, inputs: RunInputs) -> Source | None:
    """Return the Hub repository that a run started from, or that its local base policy was converted from.

    None for a policy that was trained from scratch, and for a local base policy of unknown origin.
    """
    if not recipe.policy:
        return None
    return inputs.card_source(recipe.policy) or converted_from(inputs.folder(recipe.policy))


def converted_from(folder: Path | None) -> Source | None:
    """Return the Hub repository that a policy was converted from, according to its conversion report."""
    report = folder / REPORT if folder is not None else None
    if report is None or not report.is_file():
        return None
    values = read_json_object(report, fix="restore the file")
    source, revision = str(values.get("source")), values.get("revision")
    return Source(source, str(revision) if revision else None) if REPO_ID.fullmatch(source) else None


def datasets_of(recipe: BaseRecipe, inputs: RunInputs) -> list[Source]:
    """Return the datasets on the Hub that a run was trained on, without local folders."""
    sources = [inputs.card_source(dataset.id, "dataset") for dataset in recipe.data.datasets]
    return [source for source in sources if source is not None]


def control_rate(recipe: BaseRecipe, inputs: RunInputs) -> float | None:
    """Return the frames per second of the run's first dataset, or None if its files are not on this machine."""
    for dataset in recipe.data.datasets[:1]:
        folder = inputs.folder(dataset.id)
        path = folder / INFO if folder is not None else None
        if inputs.hub_source(dataset.id, "dataset"):
            path = cached_file(dataset.id, INFO, "dataset")
        if path is not None and path.is_file():
            return float(read_json_object(path, fix="restore the file")["fps"])
    return None


def base_license(recipe: BaseRecipe, inputs: RunInputs) -> str | None:
    """Return the license in the README.md of a local base policy, or None if it is unknown."""
    folder = inputs.folder(recipe.policy) if recipe.policy else None
    license = read_license(folder, recipe.policy) if folder is not None else UNKNOWN_LICENSE
    return None if license == UNKNOWN_LICENSE else license


def card_license(source: Source) -> str | None:
    """Return the license in the card of a model on the Hub, or None if it is unknown or the card cannot be read."""
    name = f"{source.id}@{source.revision}" if source.revision else source.id
    readme = cached_file(name, "README.md")
    if readme is None:
        try:
            readme = resolve(name, ["README.md"], kind="base model").folder / "README.md"
        except UserError:
            return None
    license = read_license(readme.parent, source.id)
    return None if license == UNKNOWN_LICENSE else license
