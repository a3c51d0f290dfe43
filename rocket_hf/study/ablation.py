"""The variants of alignment side by side: equal data, steps and samples, several seeds, rollouts from the same starts.

Every variant of a seed starts from the same untrained policy and sees the same samples with the same noise. Each
training and each evaluation is a phase of its own, so an ablation may be killed at any moment and goes on with the same
command; more seeds or recipes may be added to one that is done.
"""

import json
import resource
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rocket_hf.errors import UserError
from rocket_hf.training.recipe_files import read_yaml

from .curves import mean
from .demo import Demo
from .phases import PROGRESS, Commands, Phases, Result, words_of, write_recipe
from .small_policy import EXECUTED, MAX_STEPS, TEACHER, train_policy, training_settings, write_small_policy

Programs = dict[str, Callable[[list[str]], int]]
DATA_PHASES = ("simulate", "pairs", "cache")  # of the demo, whose data these are
AGREEMENTS = 20  # how often it is measured in a run
DEPTH_SEED = 200_000  # of the first start that depth is probed on: neither trained on nor evaluated on
DEPTH_FRAMES = 600


class Work(NamedTuple):
    name: str
    kind: str  # those of one kind take about as long as each other
    do: Callable[[], Result]


class Data(NamedTuple):
    """Of a demo: what all policies are trained with."""

    folder: Path
    tasks: list[str]
    pairs: dict[str, list[int]]  # "student" and "teacher"

    @property
    def dataset(self) -> Path:
        return self.folder / "dataset"

    @property
    def features(self) -> Path:
        return self.folder / "features"


class Ablation:
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
        """`sizes`: training steps; of each task rollouts, episodes to probe depth on, and demonstrations where `data`,
        the folder of a demo, is not given. Recipes are names or YAML files."""
        self.folder, self.recipes, self.seeds = folder, named(recipes), range(seeds)
        self.sizes, self.given, self.programs, self.workers = sizes, data, programs, workers
        if data is not None:
            read_data(data)
        self.phases = Phases(folder, sizes | {"data": str(data.resolve()) if data is not None else None})
        self.run = Commands(folder / "log.txt", programs)

    def __call__(self, report: Callable[["Ablation"], None]) -> None:
        """All phases that are not done yet. `report` is called whenever all variants of one more seed are."""
        for work in self.data_work():
            self.go_through(work)
        for seed in self.seeds:
            open_before = len(self.open())
            for work in self.seed_work(seed):
                self.go_through(work)
            if len(self.open()) < open_before or seed == self.seeds[-1]:
                report(self)

    def go_through(self, work: Work) -> None:
        if work.name not in self.phases.results:
            everything = self.work()
            done = len(everything) - len(self.open())
            print(f"[{done + 1} of {len(everything)}] {work.name}: {self.time_left()}", flush=True)
        self.phases(work.name, lambda: with_cpu_seconds(work.do))

    def work(self) -> list[Work]:
        return [*self.data_work(), *(work for seed in self.seeds for work in self.seed_work(seed))]

    def open(self) -> list[Work]:
        return [work for work in self.work() if work.name not in self.phases.results]

    def data_work(self) -> Iterator[Work]:
        if self.given is None:
            for name in DATA_PHASES:
                yield Work(name, name, partial(self.prepare, name))
        yield Work("depth data", "depth data", self.record_depth)

    def seed_work(self, seed: int) -> Iterator[Work]:
        """Trainings one after the other, so that a slow hour of the machine falls on all variants."""
        yield Work(f"untrained seed {seed}", "untrained", partial(self.write_untrained, seed))
        for name in self.recipes:
            yield Work(phase("train", name, seed), "train", partial(self.train, name, seed))
        for name in self.recipes:
            yield Work(phase("rollouts", name, seed), "rollouts", partial(self.roll_out, name, seed))
        yield Work(depth_phase(self.recipes, seed), "depth", partial(self.probe_depth, seed))

    def time_left(self) -> str:
        """By the mean time of the phases of each kind that are done."""
        spent = sum(self.phases.seconds.values())
        kinds = {work.name: work.kind for work in self.work()}
        known: dict[str, list[float]] = {}
        for name in self.phases.results:
            known.setdefault(kinds.get(name, ""), []).append(self.phases.seconds[name])
        left = [mean(known[work.kind]) for work in self.open() if work.kind in known]
        at_least = "" if len(left) == len(self.open()) else "more than "
        return f"{clock(spent)} so far, {at_least}{clock(sum(left))} left"

    # The phases

    def prepare(self, name: str) -> Result:
        demo = Demo(self.folder / "data", {"episodes": self.sizes["episodes"]}, self.programs, self.workers)
        return demo.phases(name, demo.work()[name])

    @property
    def data(self) -> Data:
        return read_data(self.given or self.folder / "data")

    def untrained(self, seed: int) -> Path:
        return self.folder / "untrained" / f"seed-{seed}"

    def run_folder(self, name: str, seed: int) -> Path:
        return self.folder / "runs" / f"{name}-seed-{seed}"

    def write_untrained(self, seed: int) -> Result:
        if not self.untrained(seed).exists():
            write_small_policy(self.untrained(seed), self.data.dataset, seed)
        return {}

    def train(self, name: str, seed: int) -> Result:
        out, data = self.run_folder(name, seed), self.data
        file = self.folder / "recipes" / f"{name}-seed-{seed}.yaml"
        file.parent.mkdir(exist_ok=True)
        settings = self.training(seed) | alignment(self.recipes[name], data, self.sizes["steps"])
        recipe = write_recipe(file, self.recipes[name], settings)
        features = data.features if aligns(self.recipes[name]) else None
        train_policy(self.run, recipe, self.untrained(seed), data.dataset, out, features)
        return {"run": str(out)}

    def training(self, seed: int) -> Result:
        steps = self.sizes["steps"]
        return training_settings(steps) | {"run.seed": seed, "run.keep": 1, "run.validate_every": steps}

    def roll_out(self, name: str, seed: int) -> Result:
        out = self.folder / "rollouts" / f"{name}-seed-{seed}"
        chosen = ["--tasks", *self.data.tasks, "--episodes", self.sizes["rollouts"], "--max-steps", MAX_STEPS]
        words = [*chosen, "--execute", EXECUTED, "--workers", self.workers, "--out", out]
        self.run("rocket-hf", "eval", self.run_folder(name, seed) / "policy", "--env", "metaworld", *words)
        return json.loads((out / "evaluation.json").read_text())

    def record_depth(self) -> Result:
        out, starts = self.folder / "depth-data", ["--episodes", self.sizes["depth_episodes"], "--seed", DEPTH_SEED]
        words = ["--tasks", *self.data.tasks, *starts, "--depth", "--workers", self.workers, "--out", out]
        self.run("rocket-hf", "simulate", "metaworld", *words)
        return {}

    def probe_depth(self, seed: int) -> Result:
        """Of all variants, and of the untrained policy; of the teacher once, since it is the same for all seeds."""
        runs = [self.run_folder(name, seed) for name in self.recipes]
        out = self.folder / "depth" / f"seed-{seed}"
        words = ["--dataset", self.folder / "depth-data", "--samples", DEPTH_FRAMES, "--out", out]
        words += ["--teacher", TEACHER] if seed == self.seeds[0] else []
        self.run("rocket-hf", "analyze", "depth", *runs, *words)
        return json.loads((out / "depth.json").read_text())


def depth_phase(recipes: Iterable[str], seed: int) -> str:
    return phase("depth", words_of(list(recipes)), seed)


def phase(kind: str, name: str, seed: int) -> str:
    return f"{kind} {name} seed {seed}"


def named(recipes: list[str]) -> dict[str, str]:
    """Recipes by the name that tables show."""
    by_name = {Path(recipe).stem: recipe for recipe in recipes}
    if len(by_name) < len(recipes):
        raise UserError(f"--recipes {','.join(recipes)} names a recipe twice: name each once")
    for recipe in recipes:
        read_yaml(recipe)
    return by_name


def aligns(recipe: str) -> bool:
    return read_yaml(recipe).get("alignment") is not None


def alignment(recipe: str, data: Data, steps: int) -> Result:
    """The layer pairs of the demo; a recipe of one pair has the deepest of them."""
    if not aligns(recipe):
        return {}
    single = len(read_yaml(recipe)["alignment"]["student_layers"]) == 1
    chosen = {side: layers[-1:] if single else layers for side, layers in data.pairs.items()}
    layers = {f"alignment.{side}_layers": chosen[side] for side in ("student", "teacher")}
    return layers | {"analysis.gradient_agreement_every": max(1, steps // AGREEMENTS)}


def read_data(folder: Path) -> Data:
    """The data of a demo that has come so far."""
    found = json.loads((folder / PROGRESS).read_text())["results"] if (folder / PROGRESS).is_file() else {}
    if not set(DATA_PHASES) <= found.keys():
        raise UserError(f"{folder} holds no data of a demo: give the folder that `rocket-hf demo --out FOLDER` wrote")
    plan = json.loads((folder / "dataset" / "meta" / "simulation.json").read_text())["plan"]
    return Data(folder, plan["tasks"], found["pairs"])


def with_cpu_seconds(do: Callable[[], Result]) -> Result:
    """And how long processors worked for it, in this process and in those that it waited for."""
    before = cpu_seconds()
    return do() | {"cpu_seconds": round(cpu_seconds() - before, 1)}


def cpu_seconds() -> float:
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(times.ru_utime + times.ru_stime for times in used)


def clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
