"""The main job from nothing, in minutes on two CPU cores: demonstrations, two policies, rollouts, a published policy.

Both policies start from the same weights and see the same samples for as many steps: `none` learns from the actions
alone, `rocket` is aligned with the 3D teacher that this package ships. Which of them does better, the report says, with
the interval of the difference.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rocket_hf.errors import UserError

from .phases import Commands, Phases, Result, words_of, write_recipe
from .small_policy import DEPTH, EXECUTED, MAX_STEPS, TEACHER, train_policy, training_settings, write_small_policy

TASKS = ("button-press-topdown-v3", "drawer-open-v3", "window-open-v3", "door-close-v3")
STRATEGY, PAIRS = "early-to-middle+last", 3
RECIPES = ("none", "rocket")
BASE_LICENSE = ["--base", "rocket_hf/small-pi0", "--license", "apache-2.0"]

# Run where this package cannot be imported, as on any machine that has transformers alone.
CLEAN_PROCESS = """
import json, sys
sys.modules["rocket_hf"] = None
from transformers import AutoModel
policy = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
report = policy.self_test()
print(json.dumps({"distance": report.distance, "tolerance": report.tolerance, "parameters": policy.num_parameters()}))
"""


class Demo:
    def __init__(self, folder: Path, sizes: Result, programs: dict[str, Callable[[list[str]], int]], workers: int):
        """`sizes`: episodes and rollouts of each task, and training steps."""
        self.folder, self.sizes, self.workers = folder, sizes, workers
        self.phases = Phases(folder, sizes)
        self.run = Commands(folder / "log.txt", programs)

    def __call__(self) -> Result:
        """All that the report tells. Phases that are done are not repeated."""
        found: Result = {}
        for name, work in self.work().items():
            found[name] = self.phases(name, work)
        return found | {"seconds": self.phases.seconds}

    def work(self) -> dict[str, Callable[[], Result]]:
        return {
            "simulate": self.simulate,
            "pairs": self.choose_pairs,
            "cache": self.cache,
            **{f"train {recipe}": partial(self.train, recipe) for recipe in RECIPES},
            "rollouts untrained": self.roll_out_untrained,
            "rollouts": self.roll_out,
            "film": self.film,
            "publish": self.publish,
            "load": self.load,
        }

    def path(self, name: str) -> Path:
        return self.folder / name

    def simulate(self) -> Result:
        settings = ["--tasks", *TASKS, "--episodes", self.sizes["episodes"], "--workers", self.workers]
        self.run("rocket-hf", "simulate", "metaworld", *settings, "--out", self.path("dataset"))
        info = json.loads((self.path("dataset") / "meta" / "info.json").read_text())
        return {"episodes": info["total_episodes"], "frames": info["total_frames"]}

    def choose_pairs(self) -> Result:
        """And writes the untrained policy whose layers they are."""
        if not self.path("base").exists():
            write_small_policy(self.path("base"), self.path("dataset"))
        by_depth = ["--student-depth", DEPTH, "--teacher", TEACHER, "--strategy", STRATEGY, "--pairs", PAIRS]
        return json.loads(self.run("rocket-hf", "layers", *by_depth, "--json"))

    def cache(self) -> Result:
        layers = words_of(self.phases.results["pairs"]["teacher"])
        build = ["cache", "build", self.path("dataset"), "--teacher", TEACHER, "--layers", layers]
        self.run("rocket-hf", *build, "--storage", "int8", "--batch-size", 32, "--out", self.path("features"))
        return {"bytes": folder_size(self.path("features"))}

    def train(self, name: str) -> Result:
        out, aligned = self.path(name), name != "none"
        recipe = write_recipe(self.path(f"{name}.yaml"), name, self.training() | (self.alignment() if aligned else {}))
        features = self.path("features") if aligned else None
        train_policy(self.run, recipe, self.path("base"), self.path("dataset"), out, features)
        return {"policy": str(out / "policy"), "bytes": (out / "policy" / "model.safetensors").stat().st_size}

    def training(self) -> Result:
        steps = self.sizes["steps"]
        return training_settings(steps) | {"run.validate_every": max(1, steps // 2)}

    def alignment(self) -> Result:
        pairs = self.phases.results["pairs"]
        layers = {"alignment.student_layers": pairs["student"], "alignment.teacher_layers": pairs["teacher"]}
        return layers | {"analysis.gradient_agreement_every": max(1, self.sizes["steps"] // 10)}

    def evaluate(self, policy: Path, out: Path, *more: Any, episodes: int | None = None, tasks: Any = TASKS) -> Result:
        chosen = [
            "--tasks",
            *tasks,
            "--episodes",
            episodes or self.sizes["rollouts"],
            "--execute",
            EXECUTED,
            "--max-steps",
            MAX_STEPS,
        ]
        words = ["eval", policy, "--env", "metaworld", *chosen, "--workers", self.workers, "--out", out, *more]
        self.run("rocket-hf", *words)
        return json.loads((out / "evaluation.json").read_text())

    def roll_out_untrained(self) -> Result:
        return self.evaluate(self.path("base"), self.path("rollouts-untrained"))

    def roll_out(self) -> Result:
        """Both policies on the same held-out starts."""
        none = ["--against", self.path("none") / "policy"]
        return self.evaluate(self.path("rocket") / "policy", self.path("rollouts"), *none)

    def film(self) -> Result:
        """One rollout of the aligned policy, to look at: one that succeeds, if any does."""
        won = [episode for episode in self.phases.results["rollouts"]["episodes"] if episode["success"]]
        chosen = (won or self.phases.results["rollouts"]["episodes"])[-1]
        more = ["--seed", chosen["seed"], "--videos", self.path("film")]
        self.evaluate(self.path("rocket") / "policy", self.path("film"), *more, episodes=1, tasks=[chosen["task"]])
        (video,) = self.path("film").rglob("*.mp4")
        return {"video": str(video), "task": chosen["task"], "success": chosen["success"]}

    def publish(self) -> Result:
        """With the measured success on its card."""
        more = [*BASE_LICENSE, "--evaluation", self.path("rollouts")]
        if not self.path("published").exists():
            self.run("rocket-hf", "publish", self.path("rocket"), *more, "--to", self.path("published"))
        return {"folder": str(self.path("published")), "bytes": folder_size(self.path("published"))}

    def load(self) -> Result:
        program = [sys.executable, "-c", CLEAN_PROCESS, str(self.path("published"))]
        print("$ python -c \"AutoModel.from_pretrained('...', trust_remote_code=True).self_test()\"", flush=True)
        done = subprocess.run(program, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{self.path('published')} does not load in a clean process: {last_line(done.stderr)}")
        return json.loads(last_line(done.stdout))


def folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
