"""Ablation of alignment variants with equal data, steps and samples, several seeds, and the same rollout start states.

All variants of a seed start from the same untrained policy and are trained on the same samples with the same noise.
Each training and each evaluation is a phase of its own: an ablation may be killed at any moment and is resumed by the
same command, and seeds and recipes may be added to a finished one.
"""

import json
import resource
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rocket_hf.errors import UserError
from rocket_hf.formatting import format_duration
from rocket_hf.training.recipe_files import read_vla_recipe

from .curves import mean
from .demo import Demo
from .phases import (
    PROGRESS,
    CommandRunner,
    Phases,
    Result,
    join_values,
    read_experiment_progress,
    write_experiment_recipe,
)
from .small_policy import EXECUTED_ACTIONS, MAX_STEPS, TEACHER, train_policy, training_settings, write_small_policy

Programs = dict[str, Callable[[list[str]], int]]
DATA_PHASES = ("simulate", "pairs", "cache")  # phases of the demo that create the training data
AGREEMENT_MEASUREMENTS = 20  # measurements of gradient agreement in a run
DEPTH_SEED = 200_000  # seed of the first episode for the depth probe, used neither in training nor in evaluation
DEPTH_FRAMES = 600


class AblationPhase(NamedTuple):
    """One step of an ablation, with the function that runs it."""

    name: str
    kind: str  # phases of the same kind take about the same time
    run: Callable[[], Result]


class AblationData(NamedTuple):
    """Training data of all policies, created by a demo."""

    folder: Path
    tasks: list[str]
    pairs: dict[str, list[int]]  # layers of the "student" and of the "teacher"

    @property
    def dataset(self) -> Path:
        return self.folder / "dataset"

    @property
    def features(self) -> Path:
        return self.folder / "features"


class Ablation:
    """Ablation in a folder. `recipes` are names or YAML files.

    `sizes` are the number of training steps and, per task, of rollouts, of episodes for the depth probe and of
    demonstrations. The latter is None if `data`, the folder of a demo, is given.
    """

    def __init__(
        self,
        folder: Path,
        recipes: list[str],
        seeds: int,
        sizes: Result,
        data: Path | None,
        programs: Programs,
        workers: int,
    ):
        self.folder, self.recipes, self.seeds = folder, recipes_by_name(recipes), range(seeds)
        self.sizes, self.given_data, self.programs, self.workers = sizes, data, programs, workers
        if data is not None:
            read_data(data)
        self.phases = Phases(folder, sizes | {"data": str(data.resolve()) if data is not None else None})
        self.run_command = CommandRunner(folder / "log.txt", programs)

    def __call__(self, report: Callable[["Ablation"], None]) -> None:
        """Run all remaining phases. `report` is called whenever all variants of another seed are complete."""
        for phase in self.data_phases():
            self.run_phase(phase)
        for seed in self.seeds:
            remaining_before = len(self.remaining_phases())
            for phase in self.seed_phases(seed):
                self.run_phase(phase)
            if len(self.remaining_phases()) < remaining_before or seed == self.seeds[-1]:
                report(self)

    def run_phase(self, phase: AblationPhase) -> None:
        if phase.name not in self.phases.results:
            count = len(self.all_phases())
            done = count - len(self.remaining_phases())
            print(f"[{done + 1} of {count}] {phase.name}: {self.format_progress()}", flush=True)
        self.phases(phase.name, lambda: run_with_cpu_seconds(phase.run))

    def all_phases(self) -> list[AblationPhase]:
        return [*self.data_phases(), *(phase for seed in self.seeds for phase in self.seed_phases(seed))]

    def remaining_phases(self) -> list[AblationPhase]:
        return [phase for phase in self.all_phases() if phase.name not in self.phases.results]

    def data_phases(self) -> Iterator[AblationPhase]:
        if self.given_data is None:
            for name in DATA_PHASES:
                yield AblationPhase(name, name, partial(self.prepare_data, name))
        yield AblationPhase("depth data", "depth data", self.record_depth)

    def seed_phases(self, seed: int) -> Iterator[AblationPhase]:
        """Yield the phases of a seed. All trainings are consecutive, so that a slow machine affects all variants."""
        yield AblationPhase(f"untrained seed {seed}", "untrained", partial(self.write_untrained, seed))
        for name in self.recipes:
            yield AblationPhase(phase_name("train", name, seed), "train", partial(self.train, name, seed))
        for name in self.recipes:
            yield AblationPhase(phase_name("rollouts", name, seed), "rollouts", partial(self.run_rollouts, name, seed))
        yield AblationPhase(depth_phase_name(self.recipes, seed), "depth", partial(self.probe_depth, seed))

    def format_progress(self) -> str:
        """Return elapsed and remaining time, estimated from the mean duration of completed phases of each kind."""
        elapsed = sum(self.phases.seconds.values())
        kinds = {phase.name: phase.kind for phase in self.all_phases()}
        durations: dict[str, list[float]] = {}
        for name in self.phases.results:
            durations.setdefault(kinds.get(name, ""), []).append(self.phases.seconds[name])
        remaining = self.remaining_phases()
        estimates = [mean(durations[phase.kind]) for phase in remaining if phase.kind in durations]
        at_least = "" if len(estimates) == len(remaining) else "more than "
        return f"{format_duration(elapsed)} elapsed, {at_least}{format_duration(sum(estimates))} remaining"

    # Functions of the phases

    def prepare_data(self, name: str) -> Result:
        demo = Demo(self.folder / "data", {"episodes": self.sizes["episodes"]}, self.programs, self.workers)
        return demo.phases(name, demo.phase_functions()[name])

    @property
    def data(self) -> AblationData:
        return read_data(self.given_data or self.folder / "data")

    def untrained_folder(self, seed: int) -> Path:
        return self.folder / "untrained" / f"seed-{seed}"

    def run_folder(self, name: str, seed: int) -> Path:
        return self.folder / "runs" / f"{name}-seed-{seed}"

    def write_untrained(self, seed: int) -> Result:
        if not self.untrained_folder(seed).exists():
            write_small_policy(self.untrained_folder(seed), self.data.dataset, seed)
        return {}

    def train(self, name: str, seed: int) -> Result:
        out, data = self.run_folder(name, seed), self.data
        file = self.folder / "recipes" / f"{name}-seed-{seed}.yaml"
        file.parent.mkdir(exist_ok=True)
        settings = self.training_settings(seed) | alignment_settings(self.recipes[name], data, self.sizes["steps"])
        recipe = write_experiment_recipe(file, self.recipes[name], settings)
        features = data.features if has_alignment(self.recipes[name]) else None
        train_policy(self.run_command, recipe, self.untrained_folder(seed), data.dataset, out, features)
        return {"run": str(out)}

    def training_settings(self, seed: int) -> Result:
        steps = self.sizes["steps"]
        return training_settings(steps) | {"run.seed": seed, "run.keep": 1, "run.validate_every": steps}

    def run_rollouts(self, name: str, seed: int) -> Result:
        out = self.folder / "rollouts" / f"{name}-seed-{seed}"
        words = ["--tasks", *self.data.tasks, "--episodes", self.sizes["rollouts"], "--max-steps", MAX_STEPS]
        words += ["--execute", EXECUTED_ACTIONS, "--workers", self.workers, "--out", out]
        self.run_command("rocket-hf", "eval", self.run_folder(name, seed) / "policy", "--env", "metaworld", *words)
        return json.loads((out / "evaluation.json").read_text())

    def record_depth(self) -> Result:
        out, episodes = self.folder / "depth-data", ["--episodes", self.sizes["depth_episodes"], "--seed", DEPTH_SEED]
        words = ["--tasks", *self.data.tasks, *episodes, "--depth", "--workers", self.workers, "--out", out]
        self.run_command("rocket-hf", "simulate", "metaworld", *words)
        return {}

    def probe_depth(self, seed: int) -> Result:
        """Probe all variants and the untrained policy. The teacher, equal for all seeds, is probed with the first."""
        runs = [self.run_folder(name, seed) for name in self.recipes]
        out = self.folder / "depth" / f"seed-{seed}"
        words = ["--dataset", self.folder / "depth-data", "--samples", DEPTH_FRAMES, "--out", out]
        words += ["--teacher", TEACHER] if seed == self.seeds[0] else []
        self.run_command("rocket-hf", "analyze", "depth", *runs, *words)
        return json.loads((out / "depth.json").read_text())


def depth_phase_name(recipes: Iterable[str], seed: int) -> str:
    return phase_name("depth", join_values(list(recipes)), seed)


def phase_name(kind: str, name: str, seed: int) -> str:
    return f"{kind} {name} seed {seed}"


def recipes_by_name(recipes: list[str]) -> dict[str, str]:
    by_name = {Path(recipe).stem: recipe for recipe in recipes}
    if len(by_name) < len(recipes):
        raise UserError(f"--recipes {','.join(recipes)} lists a recipe twice: list each recipe once")
    for recipe in recipes:
        read_vla_recipe(recipe)
    return by_name


def has_alignment(recipe: str) -> bool:
    return read_vla_recipe(recipe).alignment is not None


def alignment_settings(recipe: str, data: AblationData, steps: int) -> Result:
    """Return the layer settings of a recipe: all layer pairs of the demo, or the deepest for a recipe with one pair."""
    alignment = read_vla_recipe(recipe).alignment
    if alignment is None:
        return {}
    has_single_pair = (alignment.pairs or len(alignment.student_layers)) == 1
    layers = {
        f"alignment.{model}_layers": data.pairs[model][-1:] if has_single_pair else data.pairs[model]
        for model in ("student", "teacher")
    }
    measurements = {"analysis.gradient_agreement_every": max(1, steps // AGREEMENT_MEASUREMENTS)}
    return layers | {"alignment.pairs": None} | measurements


def read_data(folder: Path) -> AblationData:
    """Read the data of a demo that has completed its data phases."""
    results = read_experiment_progress(folder)["results"] if (folder / PROGRESS).is_file() else {}
    if not set(DATA_PHASES) <= results.keys():
        raise UserError(f"{folder} contains no demo data: pass a folder written by `rocket-hf demo --out FOLDER`")
    plan = folder / "dataset" / "meta" / "simulation.json"
    try:
        tasks = json.loads(plan.read_text())["plan"]["tasks"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{plan} cannot be read ({error}): run the demo again, or pass other --data") from error
    return AblationData(folder, tasks, results["pairs"])


def run_with_cpu_seconds(run: Callable[[], Result]) -> Result:
    """Run a phase and add to its result the CPU time of this process and of its finished child processes."""
    before = used_cpu_seconds()
    return run() | {"cpu_seconds": round(used_cpu_seconds() - before, 1)}


def used_cpu_seconds() -> float:
    usages = [resource.getrusage(processes) for processes in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
