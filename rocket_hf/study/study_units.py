"""Units of a study: one `rocket-hf` command each, with its output folder and the units that it needs.

Units are shared where their inputs agree: demonstrations by all arms with the same environment and tasks, feature
caches by all arms with the same demonstrations and teacher, untrained policies by all variants of a seed, and trained
policies by all phases.
"""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from .environment_options import has_computed_images
from .small_policy import EXECUTED_ACTIONS, training_settings
from .study_file import NOMINAL, Study, StudySetting

KINDS = ("record", "cache", "untrained", "train", "evaluate", "probe")
PROBE_SEED = 200_000  # seed of the first episode of the depth probe, used neither in training nor in evaluation
ORACLE = "oracle"  # teacher that reads the recorded depth
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Arm(NamedTuple):
    """Variant in a setting, trained with a seed."""

    setting: str
    variant: str
    seed: int

    @property
    def path(self) -> str:
        return f"{self.setting}/{self.variant}/seed-{self.seed}"


@dataclass(frozen=True)
class Unit:
    """Command of a study."""

    name: str  # such as train/S2/rocket/seed-100
    words: tuple[str, ...]  # arguments of `rocket-hf`
    out: Path
    needs: tuple["Unit", ...] = ()
    resume_file: str | None = None  # file in `out` after which the command needs --resume

    @property
    def kind(self) -> str:
        return self.name.partition("/")[0]

    @property
    def command(self) -> str:
        """Return the shell command that repeats the unit exactly."""
        threads = " ".join(f"{name}={value}" for name, value in THREADS.items())
        return f"{threads} rocket-hf {shlex.join(self.words)}"


class UnitPlanner:
    """Planner of the units of each arm, in the folder of a study."""

    def __init__(self, study: Study, folder: Path, device: str = "cpu"):
        self.study, self.folder, self.device = study, folder, device
        self.data_names = name_datasets(study)
        self.trainings: dict[Arm, Unit] = {}

    def arm_units(self, arm: Arm, evaluations: list[str], is_probed: bool) -> list[Unit]:
        """Return the last units of an arm; all others are those that they need."""
        train = self.trainings.get(arm) or self.trainings.setdefault(arm, self.train(arm))
        units = [self.evaluate(arm, train, name) for name in evaluations]
        can_be_probed = not has_computed_images(self.study.environment(*arm[:2]))
        return [*units, *([self.probe(arm, train)] if is_probed and can_be_probed else [])]

    def record(self, setting: str, variant: str, is_probe: bool = False) -> Unit:
        """Return the recording of the demonstrations, or of the episodes of the depth probe."""
        values = self.study.settings[setting]
        environment = self.study.environment(setting, variant)
        count = self.study.depth_episodes if is_probe else values.episodes
        name = self.data_names[dataset_key(self.study, setting, variant, is_probe)]
        words = ["simulate", environment, "--tasks", *self.study.tasks(setting), "--episodes", count]
        words += ["--image-size", values.camera_size, "--workers", 1]
        words += ["--depth"] if is_probe or self.needs_depth(environment) else []
        words += ["--seed", PROBE_SEED] if is_probe else []
        return self.unit(f"record/{name}", words)

    def needs_depth(self, environment: str) -> bool:
        """Return whether any variant in this environment has a teacher that reads the recorded depth."""
        return any(
            variant.teacher == ORACLE and self.study.environment(setting, name) == environment
            for setting in self.study.settings
            for name, variant in self.study.variants.items()
        )

    def cache(self, setting: str, variant: str) -> Unit:
        teacher, data = self.study.variants[variant].teacher, self.record(setting, variant)
        assert teacher is not None
        words = ["cache", "build", data.out, "--teacher", teacher, "--storage", "int8", "--batch-size", 32]
        words += ["--workers", 0, *(["--layers", layers] if (layers := self.cache_layers(teacher)) else [])]
        return self.unit(f"cache/{data.out.name}/{slug(teacher)}", words, data)

    def cache_layers(self, teacher: str) -> str:
        """Return the teacher's layers that variants list, separated by commas; empty if one does not list them."""
        lists = [
            variant.set.get("alignment.teacher_layers")
            for variant in self.study.variants.values()
            if variant.teacher == teacher
        ]
        listed = [layers for layers in lists if isinstance(layers, list)]
        if len(listed) < len(lists):
            return ""
        return ",".join(map(str, sorted({layer for layers in listed for layer in layers})))

    def untrained(self, arm: Arm) -> Unit:
        data, setting = self.record(arm.setting, arm.variant), self.study.settings[arm.setting]
        sizes = (setting.image_size, setting.patch_size, setting.vision_depth)
        words = ["study", "policy", data.out, "--seed", arm.seed]
        for option, size in zip(("--image-size", "--patch-size", "--vision-depth"), sizes, strict=True):
            words += [option, size]
        name = "untrained/{}/{}px-patch{}-vision{}/seed-{}".format(data.out.name, *sizes, arm.seed)
        return self.unit(name, words, data)

    def train(self, arm: Arm) -> Unit:
        variant, data, untrained = self.study.variants[arm.variant], self.record(*arm[:2]), self.untrained(arm)
        words = ["train", "--num_processes", 1, "--recipe", variant.recipe, "--policy", untrained.out]
        words += ["--dataset", data.out]
        needs = [data, untrained]
        if variant.teacher is not None:
            cache = self.cache(*arm[:2])
            words += ["--teacher", variant.teacher, "--cache", cache.out]
            needs.append(cache)
        for key, value in self.recipe_settings(arm).items():
            words += ["--set", f"{key}={yaml_text(value)}"]
        return self.unit(f"train/{arm.path}", words, *needs, resume_file="recipe.yaml")

    def recipe_settings(self, arm: Arm) -> dict[str, Any]:
        setting = self.study.settings[arm.setting]
        run = {"run.seed": arm.seed, "run.keep": 1, "run.validate_every": setting.steps}
        changes = setting.set | self.study.variants[arm.variant].set
        return training_settings(setting.steps) | run | changes

    def evaluate(self, arm: Arm, train: Unit, evaluation: str) -> Unit:
        setting, tasks = self.study.settings[arm.setting], self.study.tasks(arm.setting)
        words = ["eval", train.out / "policy", "--env", self.study.environment(*arm[:2], evaluation)]
        words += ["--tasks", *tasks, "--episodes", self.study.starts // len(tasks)]
        words += ["--max-steps", setting.rollout_steps, "--execute", EXECUTED_ACTIONS]
        words += ["--image-size", setting.camera_size, "--workers", 0]
        words += ["--device", self.device] if self.device != "cpu" else []
        return self.unit(f"evaluate/{arm.path}/{slug(evaluation)}", words, train)

    def probe(self, arm: Arm, train: Unit) -> Unit:
        data = self.record(arm.setting, arm.variant, is_probe=True)
        words = ["analyze", "depth", train.out, "--dataset", data.out, "--samples", self.study.depth_frames]
        is_first = arm.variant == next(iter(self.study.variants))
        words += ["--teacher", self.study.depth_teacher] if is_first and self.study.depth_teacher else []
        return self.unit(f"probe/{arm.path}", words, train, data)

    def unit(self, name: str, words: list[Any], *needs: Unit, resume_file: str | None = None) -> Unit:
        out = self.folder / "units" / name
        return Unit(name, (*map(str, words), "--out", str(out)), out, needs, resume_file)


def dataset_key(study: Study, setting: str, variant: str, is_probe: bool) -> tuple[Any, ...]:
    """Return the values that a recording depends on."""
    values: StudySetting = study.settings[setting]
    count = "probe" if is_probe else values.episodes
    return study.environment(setting, variant), *study.tasks(setting), count, values.camera_size


def name_datasets(study: Study) -> dict[tuple[Any, ...], str]:
    """Return a name for each recording: that of the first setting in the file that has it, with the variant's options.

    The names depend on the study file alone, so that a resumed study finds its folders again.
    """
    names: dict[tuple[Any, ...], str] = {}
    for setting in study.settings:
        for variant, values in study.variants.items():
            for is_probe in (False, True):
                options = f"+{slug(values.environment)}" if values.environment else ""
                name = f"{setting}{options}{'+probe' if is_probe else ''}"
                names.setdefault(dataset_key(study, setting, variant, is_probe), name)
    return names


def slug(text: str) -> str:
    """Return a text with all characters that are unusual in file names replaced."""
    return re.sub(r"[^A-Za-z0-9._=+-]+", "-", text).strip("-") or NOMINAL


def yaml_text(value: Any) -> str:
    """Return a value as YAML on one line."""
    is_plain = isinstance(value, str) and yaml.safe_load(value) == value
    return value if is_plain else json.dumps(value)


def with_needs(units: list[Unit]) -> list[Unit]:
    """Return units after those that they need, each once."""
    ordered: dict[str, Unit] = {}

    def add(unit: Unit) -> None:
        if unit.name not in ordered:
            for needed in unit.needs:
                add(needed)
            ordered[unit.name] = unit

    for unit in units:
        add(unit)
    return list(ordered.values())
