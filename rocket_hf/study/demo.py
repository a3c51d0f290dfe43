"""Demo of the whole workflow in minutes on two CPU cores: demonstrations, two policies, rollouts, a published policy.

Both policies start from the same weights and are trained on the same samples for the same number of steps: `none` only
imitates actions, `rocket` is also aligned with the 3D teacher included in this package. The report compares their
success rates with a confidence interval.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rocket_hf.errors import UserError

from .phases import CommandRunner, Phases, Result, join_values, write_experiment_recipe
from .small_policy import (
    DEPTH,
    EXECUTED_ACTIONS,
    MAX_STEPS,
    TEACHER,
    train_policy,
    training_settings,
    write_small_policy,
)

TASKS = ("button-press-topdown-v3", "drawer-open-v3", "window-open-v3", "door-close-v3")
STRATEGY, PAIRS = "early-to-middle+last", 3
RECIPES = ("none", "rocket")
BASE_LICENSE = ["--base", "rocket_hf/small-pi0", "--license", "apache-2.0"]

# Program that loads a policy in a process that cannot import this package, as on a machine with transformers only.
CLEAN_PROCESS = """
import json, sys
sys.modules["rocket_hf"] = None
from transformers import AutoModel
policy = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
report = policy.self_test()
print(json.dumps({"distance": report.distance, "tolerance": report.tolerance, "parameters": policy.num_parameters()}))
"""


class Demo:
    """Demo in a folder. `sizes` are the numbers of training steps and, per task, of episodes and rollouts."""

    def __init__(self, folder: Path, sizes: Result, programs: dict[str, Callable[[list[str]], int]], workers: int):
        self.folder, self.sizes, self.workers = folder, sizes, workers
        self.phases = Phases(folder, sizes)
        self.run_command = CommandRunner(folder / "log.txt", programs)

    def __call__(self) -> Result:
        """Run all phases that are not complete; return the results of all phases and their durations."""
        results: Result = {name: self.phases(name, function) for name, function in self.phase_functions().items()}
        return results | {"seconds": self.phases.seconds}

    def phase_functions(self) -> dict[str, Callable[[], Result]]:
        return {
            "simulate": self.simulate,
            "pairs": self.choose_pairs,
            "cache": self.cache_features,
            **{f"train {recipe}": partial(self.train, recipe) for recipe in RECIPES},
            "rollouts untrained": self.evaluate_untrained,
            "rollouts": self.evaluate_trained,
            "video": self.record_video,
            "publish": self.publish,
            "load": self.load_published,
        }

    def path(self, name: str) -> Path:
        return self.folder / name

    def simulate(self) -> Result:
        settings = ["--tasks", *TASKS, "--episodes", self.sizes["episodes"], "--workers", self.workers]
        self.run_command("rocket-hf", "simulate", "metaworld", *settings, "--out", self.path("dataset"))
        info = json.loads((self.path("dataset") / "meta" / "info.json").read_text())
        return {"episodes": info["total_episodes"], "frames": info["total_frames"]}

    def choose_pairs(self) -> Result:
        """Write the untrained policy and choose its layer pairs by depth."""
        if not self.path("base").exists():
            write_small_policy(self.path("base"), self.path("dataset"))
        words = ["--student-depth", DEPTH, "--teacher", TEACHER, "--strategy", STRATEGY, "--pairs", PAIRS, "--json"]
        return json.loads(self.run_command("rocket-hf", "layers", *words))

    def cache_features(self) -> Result:
        layers = join_values(self.phases.results["pairs"]["teacher"])
        build = ["cache", "build", self.path("dataset"), "--teacher", TEACHER, "--layers", layers]
        self.run_command("rocket-hf", *build, "--storage", "int8", "--batch-size", 32, "--out", self.path("features"))
        return {"bytes": folder_size(self.path("features"))}

    def train(self, name: str) -> Result:
        out, is_aligned = self.path(name), name != "none"
        settings = self.training_settings() | (self.alignment_settings() if is_aligned else {})
        recipe = write_experiment_recipe(self.path(f"{name}.yaml"), name, settings)
        features = self.path("features") if is_aligned else None
        train_policy(self.run_command, recipe, self.path("base"), self.path("dataset"), out, features)
        return {"policy": str(out / "policy"), "bytes": (out / "policy" / "model.safetensors").stat().st_size}

    def training_settings(self) -> Result:
        steps = self.sizes["steps"]
        return training_settings(steps) | {"run.validate_every": max(1, steps // 2)}

    def alignment_settings(self) -> Result:
        pairs = self.phases.results["pairs"]
        layers = {"alignment.student_layers": pairs["student"], "alignment.teacher_layers": pairs["teacher"]}
        return layers | {"analysis.gradient_agreement_every": max(1, self.sizes["steps"] // 10)}

    def evaluate(
        self, policy: Path, out: Path, *options: Any, episodes: int | None = None, tasks: Sequence[str] = TASKS
    ) -> Result:
        words = ["--tasks", *tasks, "--episodes", episodes or self.sizes["rollouts"], "--max-steps", MAX_STEPS]
        words += ["--execute", EXECUTED_ACTIONS, "--workers", self.workers, "--out", out, *options]
        self.run_command("rocket-hf", "eval", policy, "--env", "metaworld", *words)
        return json.loads((out / "evaluation.json").read_text())

    def evaluate_untrained(self) -> Result:
        return self.evaluate(self.path("base"), self.path("rollouts-untrained"))

    def evaluate_trained(self) -> Result:
        """Evaluate both policies on the same held-out start states."""
        none = ["--against", self.path("none") / "policy"]
        return self.evaluate(self.path("rocket") / "policy", self.path("rollouts"), *none)

    def record_video(self) -> Result:
        """Record one rollout of the aligned policy on video: a successful one if possible."""
        episodes = self.phases.results["rollouts"]["episodes"]
        episode = ([episode for episode in episodes if episode["success"]] or episodes)[-1]
        options = ["--seed", episode["seed"], "--videos", self.path("video")]
        self.evaluate(self.path("rocket") / "policy", self.path("video"), *options, episodes=1, tasks=[episode["task"]])
        (video,) = self.path("video").rglob("*.mp4")
        return {"video": str(video), "task": episode["task"], "success": episode["success"]}

    def publish(self) -> Result:
        """Publish the aligned policy to a folder, with its success rates on the card."""
        options = [*BASE_LICENSE, "--evaluation", self.path("rollouts")]
        if not self.path("published").exists():
            self.run_command("rocket-hf", "publish", self.path("rocket"), *options, "--to", self.path("published"))
        return {"folder": str(self.path("published")), "bytes": folder_size(self.path("published"))}

    def load_published(self) -> Result:
        """Load the published policy in a process without this package, and run its self-test."""
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
