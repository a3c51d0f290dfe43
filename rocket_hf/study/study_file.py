"""Study files: settings, variants and phases of a study, read strictly and fixed before its runs begin.

A study trains arms. An arm is a variant (for example `rocket`) in a setting (a simulated environment with its tasks,
demonstrations and training budget), trained with several seeds.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from rocket_hf.errors import UserError
from rocket_hf.modeling.strict_config import suggest_name
from rocket_hf.training.recipe_files import check_not_retired, parse_value, read_recipe_values

from .environment_options import check_tasks, combine_environments, find_tasks
from .study_comparisons import parse_comparison

NOMINAL = "nominal"
QUICK_STEPS, QUICK_EPISODES, QUICK_ROLLOUT_STEPS, QUICK_FRAMES = 8, 4, 20, 24


@dataclass
class StudySetting:
    """Simulated environment, demonstrations and training budget. They are the same for all variants."""

    environment: str = "metaworld"  # name of the environment with its options
    tasks: list[str] = field(default_factory=list)  # names of tasks, or of groups of tasks
    episodes: int = 20  # demonstrations per task
    steps: int = 400  # training steps
    camera_size: int = 128  # side of the recorded and rendered images in pixels
    image_size: int = 84  # side of the policy's images in pixels
    patch_size: int = 14  # side of the policy's image patches in pixels
    vision_depth: int = 1  # blocks of the policy's image encoder
    rollout_steps: int = 200  # step limit of a rollout
    set: dict[str, Any] = field(default_factory=dict)  # recipe settings by dotted key


@dataclass
class StudyVariant:
    """Training method and its inputs."""

    recipe: str = "none"  # name of a recipe, or a YAML file
    environment: str = ""  # options added to the setting's environment, such as "state=object"
    teacher: str | None = None  # teacher of the feature cache; none for recipes without alignment
    set: dict[str, Any] = field(default_factory=dict)  # recipe settings by dotted key; they override the setting's


@dataclass
class StudyEvaluation:
    """Environment in which policies are evaluated."""

    environment: str = ""  # options added to the environment of the training, such as "camera=fixed(10,0,0)"
    shift: float | None = None  # position on the horizontal axis of the figure, such as the camera's angle


@dataclass
class StudyPhase:
    """Arms, and the comparisons between them. A comparison is `a - b` or an interaction `(a - b) - (c - d)`."""

    question: str = ""
    settings: list[str] = field(default_factory=list)
    best_of: str | None = None  # instead of settings: that with the largest primary comparison of an earlier phase
    variants: list[str] = field(default_factory=list)
    seeds: Any = None  # such as 100..111 or [100, 101]; by default those of the study
    primary: str | None = None  # the comparison that answers the question
    further: list[str] = field(default_factory=list)  # further comparisons, whose p values Holm's method adjusts
    controls: list[str] = field(default_factory=list)  # comparisons of targets without 3D, such as `shuffled - none`
    input_control: str | None = None  # comparison that shows what 3D as an input gains, such as `map - none`
    margin: float | None = None  # equivalence margin in points; by default that of the study
    evaluations: list[str] = field(default_factory=lambda: [NOMINAL])  # environments in which all arms are evaluated
    measured_on: list[str] = field(default_factory=lambda: [NOMINAL])  # those whose mean success is compared
    futility_after: int | None = None  # seeds after which comparisons without a positive mean are stopped
    depth: bool = False  # whether the depth in the policies' image tokens is probed


@dataclass
class Study:
    name: str = ""
    question: str = ""
    seeds: Any = None
    starts: int = 100  # held-out episode starts per policy, in equal parts of all tasks; the same for all arms
    margin: float = 10.0  # equivalence margin in points of success
    headroom: str | None = None  # comparison that shows what perfect 3D would gain, such as `ceiling - none`
    least_headroom: float = 15.0  # points below which a setting has nothing to gain
    depth_episodes: int = 12  # episodes per task of the depth probe
    depth_frames: int = 600  # frames of the depth probe
    depth_teacher: str | None = None  # teacher that the depth probes of the first variant include
    evaluations: dict[str, StudyEvaluation] = field(default_factory=dict)
    settings: dict[str, StudySetting] = field(default_factory=dict)
    variants: dict[str, StudyVariant] = field(default_factory=dict)
    phases: dict[str, StudyPhase] = field(default_factory=dict)

    def environment(self, setting: str, variant: str, evaluation: str = NOMINAL) -> str:
        """Return the name of the environment with the options of setting, variant and evaluation."""
        options = (self.variants[variant].environment, self.evaluations[evaluation].environment)
        return combine_environments(self.settings[setting].environment, *options)

    def tasks(self, setting: str) -> list[str]:
        return find_tasks(self.settings[setting].environment, tuple(self.settings[setting].tasks))

    def phase_margin(self, phase: str) -> float:
        margin = self.phases[phase].margin
        return self.margin if margin is None else margin


def read_study(path: Path) -> Study:
    """Read and check a study file. Seeds become lists."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the study {path}: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must contain the keys of a study (name, settings, variants, phases, ...)")
    try:
        study: Study = parse_value(Study, values, "")
        return check_study(study)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def check_study(study: Study) -> Study:
    """Return the study with lists of seeds and the nominal evaluation, or raise a UserError."""
    for name in ("name", "settings", "variants", "phases"):
        if not getattr(study, name):
            raise UserError(f"the study has no {name}: add the key {name}")
    for name in (study.name, *study.settings, *study.variants, *study.phases):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UserError(f"the name {name!r} is not usable in file names: use letters, digits, '.', '_' and '-'")
    study = replace(study, evaluations={NOMINAL: StudyEvaluation(shift=0.0)} | study.evaluations)
    seeds = parse_seeds(study.seeds, "seeds")
    phases = {name: replace(phase, seeds=phase_seeds(name, phase, seeds)) for name, phase in study.phases.items()}
    study = replace(study, seeds=seeds, phases=phases)
    require_positive("", study, "starts", "margin", "depth_episodes", "depth_frames")
    for name in study.settings:
        check_setting(study, name)
    for name in study.variants:
        check_variant(study, name)
    for setting, variant, evaluation in all_environments(study):
        check_tasks(study.environment(setting, variant, evaluation), study.tasks(setting))
    if study.headroom is not None:
        check_comparison("headroom", study.headroom, study.variants)
    for name in study.phases:
        check_phase(study, name)
    return study


def check_setting(study: Study, name: str) -> None:
    setting, key = study.settings[name], f"settings.{name}"
    sizes = ("episodes", "steps", "camera_size", "image_size", "patch_size", "vision_depth", "rollout_steps")
    require_positive(f"{key}.", setting, *sizes)
    if setting.image_size % setting.patch_size:
        raise UserError(f"{key}.image_size {setting.image_size} must be a multiple of patch_size {setting.patch_size}")
    if not setting.tasks:
        raise UserError(f"{key}.tasks is empty: list the names of tasks, or of groups of tasks")
    tasks = study.tasks(name)
    if study.starts % len(tasks):
        raise UserError(f"starts {study.starts} must be a multiple of the {len(tasks)} tasks of {key}")
    check_recipe_keys(key, setting.set)


def check_variant(study: Study, name: str) -> None:
    variant, key = study.variants[name], f"variants.{name}"
    values = read_recipe_values(variant.recipe)
    is_aligned = values.get("alignment") is not None
    if is_aligned and variant.teacher is None:
        raise UserError(f"{key}: the recipe {variant.recipe} aligns with a teacher: set teacher, such as `embedded`")
    if not is_aligned and variant.teacher is not None:
        raise UserError(f"{key}: the recipe {variant.recipe} has no alignment: remove teacher")
    check_recipe_keys(key, variant.set)


def check_recipe_keys(key: str, settings: dict[str, Any]) -> None:
    for name in settings:
        check_not_retired(name, f"{key}.set")


def all_environments(study: Study) -> Iterator[tuple[str, str, str]]:
    for phase in study.phases.values():
        for setting in phase.settings or study.settings:
            for variant in phase.variants:
                if setting in study.settings and variant in study.variants:
                    yield from ((setting, variant, name) for name in phase.evaluations if name in study.evaluations)


def check_phase(study: Study, name: str) -> None:
    phase, key = study.phases[name], f"phases.{name}"
    if bool(phase.settings) == bool(phase.best_of):
        raise UserError(f"{key} needs either settings or best_of")
    if phase.best_of is not None:
        earlier = list(study.phases)[: list(study.phases).index(name)]
        require_known(f"{key}.best_of", "earlier phase", phase.best_of, earlier)
        if study.phases[phase.best_of].primary is None:
            raise UserError(f"{key}.best_of: the phase {phase.best_of} has no primary comparison to choose by")
    for kind, names, known in (
        ("setting", phase.settings, study.settings),
        ("variant", phase.variants, study.variants),
        ("evaluation", phase.evaluations, study.evaluations),
        ("evaluation", phase.measured_on, phase.evaluations),
    ):
        for entry in names:
            require_known(key, kind, entry, known)
    for comparison in filter(None, [phase.primary, *phase.further, *phase.controls, phase.input_control]):
        check_comparison(key, comparison, phase.variants)
    if phase.futility_after is not None and not 2 <= phase.futility_after < len(phase.seeds):
        raise UserError(
            f"{key}.futility_after must be at least 2 and less than its {len(phase.seeds)} seeds, got "
            f"{phase.futility_after}"
        )


def check_comparison(key: str, text: str, variants: Collection[str]) -> None:
    for variant in parse_comparison(text):
        require_known(f"{key}, comparison {text!r}", "variant", variant, variants)


def require_known(owner: str, kind: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise UserError(f"{owner}: there is no {kind} {name!r}: {suggest_name(name, known)}")


def require_positive(prefix: str, owner: Any, *names: str) -> None:
    for name in names:
        if getattr(owner, name) <= 0:
            raise UserError(f"{prefix}{name} must be above 0, got {getattr(owner, name)}")


def phase_seeds(name: str, phase: StudyPhase, default: list[int]) -> list[int]:
    return default if phase.seeds is None else parse_seeds(phase.seeds, f"phases.{name}.seeds")


def parse_seeds(value: Any, key: str) -> list[int]:
    """Return the seeds of a range such as "100..111", or of a list."""
    message = f"{key} must be a range such as 100..111 or a list of different integers of at least 0, got {value!r}"
    if isinstance(value, str):
        low, dots, high = value.partition("..")
        if not (dots and low.isdecimal() and high.isdecimal() and int(low) <= int(high)):
            raise UserError(message)
        return list(range(int(low), int(high) + 1))
    is_list = isinstance(value, list) and value and all(type(seed) is int and seed >= 0 for seed in value)
    if not is_list or len(set(value)) < len(value):
        raise UserError(message)
    return value


def quick_study(study: Study) -> Study:
    """Return a study with all arms and evaluations of this one, but a single seed and the smallest sizes."""
    settings = {name: quick_setting(study, name) for name in study.settings}
    phases = {name: replace(phase, seeds=phase.seeds[:1], futility_after=None) for name, phase in study.phases.items()}
    return replace(
        study, settings=settings, phases=phases, seeds=study.seeds[:1], starts=1, depth_episodes=QUICK_EPISODES,
        depth_frames=QUICK_FRAMES,
    )  # fmt: skip


def quick_setting(study: Study, name: str) -> StudySetting:
    recipe_sizes = {"run.batch_size": 4, "run.validation_samples": 4, "schedule.warmup": 2}
    setting = study.settings[name]
    return replace(
        setting,
        tasks=study.tasks(name)[:1],
        episodes=QUICK_EPISODES,
        steps=QUICK_STEPS,
        rollout_steps=QUICK_ROLLOUT_STEPS,
        set=setting.set | recipe_sizes,
    )
