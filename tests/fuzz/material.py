"""Real inputs of the command line, built once per session: policies, datasets, a teacher, a cache, runs, a recording.

All paths are relative, so that a copy of the folder can be used in the same way.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

import torch

from rocket_hf.bench.lerobot_tiny import lerobot_policy
from rocket_hf.commands import main as rocket_hf
from rocket_hf.modeling.configuration_pi0 import Pi0Config
from rocket_hf.sims.demonstrations import record
from rocket_hf.sims.vizdoom.recording import record_rooms
from rocket_hf.study.small_policy import write_small_policy
from rocket_hf.tiny import PI0_SIZES, tiny_config
from rocket_hf.tiny_dataset import write_tiny_dataset
from rocket_hf.training.train import main as train

from ..convert.published_rocket2 import ReferenceRocket2
from ..convert.test_lerobot import save_lerobot_policy
from ..convert.test_openvla import write_oft
from ..convert.test_rocket2 import store
from ..tiny_vggt import write_tiny_vggt
from ..training.conftest import reset_accelerate_state, set_options, write_policy

TINY_ROCKET2 = {
    "rocket2__config__rgb_frozen": False, "rocket2__config__heads": 2, "rocket2__config__rgb_heads": 2,
    "rocket2__config__width": 16, "rocket2__config__rgb_width": 16, "rocket2__config__rgb_mlp_width": 16,
    "rocket2__config__mask_width": 8, "rocket2__config__patch_size": 20, "rocket2__config__spatial_layers": 1,
    "rocket2__config__view_tokens": 2, "rocket2__chunk_steps": 6, "rocket2__chunks": 2, "rocket2__goals": 2,
    "rocket2__warmup_steps": 0, "data__validation": 0, "schedule__warmup": 0,
}  # fmt: skip
RECIPE = """\
about: A recipe with all inputs.
like: tiny
policy: policy
data:
  datasets: [{id: dataset, weight: 1.0}]
  validation: 0
teacher: {name: teacher}
optimizer: {lr: 1e-3, betas: [0.9, 0.95], weight_decay: 0.01}
schedule: {kind: cosine, warmup: 1}
run: {steps: 1, batch_size: 2, save_every: 1}
"""
LICENSE = ["--license", "apache-2.0", "--base", "lerobot/smolvla_base"]


def build_material(root: Path) -> None:
    """Write everything into `root`, which is complete if it contains the file `complete`."""
    with contextlib.chdir(root):
        write_datasets()
        for family in ("smolvla", "pi0", "openvla-oft"):
            write_policy(Path("policy" if family == "smolvla" else family), family)
        write_small_policy(Path("small"), Path("rgbd"))
        write_tiny_vggt(Path("teacher"))
        Path("recipe.yaml").write_text(RECIPE)
        write_conversion_sources()
        run_commands()
        Path("complete").touch()


def write_datasets() -> None:
    write_tiny_dataset("dataset", 3, 6)
    write_tiny_dataset("videos", 2, 6, video=True)
    record_rooms(Path("rooms"), rooms=2, views=4, workers=1)
    record(Path("rgbd"), "metaworld", ("handle-press-v3", "reach-v3"), 2, image_size=48, depth=True, workers=1)


def write_conversion_sources() -> None:
    torch.manual_seed(0)
    policy = lerobot_policy(tiny_config(policy_config=Pi0Config(variant="pi0", **PI0_SIZES), alignment=None))
    save_lerobot_policy(policy, Path())
    write_oft(Path("oft"))
    store(ReferenceRocket2().state_dict(), Path("public-rocket2"))


def run_commands() -> None:
    """Train, build a cache, evaluate and publish with the commands themselves."""
    call("cache", "build", "dataset", "--teacher", "teacher", "--out", "cache", "--layers", "2,3,4", "--device", "cpu",
         "--workers", 0)  # fmt: skip
    steps: dict[str, Any] = {"run__steps": 2, "run__save_every": 1, "run__keep": 2, "data__validation": 0.34}
    inputs = ["--policy", "policy", "--dataset", "dataset", "--teacher", "teacher"]
    call_training("--recipe", "tiny", *inputs, "--out", "run", *set_options(**steps))
    lora: dict[str, Any] = {
        "lora__rank": 2,
        "data__workers": 0,
        "run__steps": 1,
        "run__batch_size": 2,
        "schedule__warmup": 0,
    }
    call("adapt", "policy", "--dataset", "dataset", "--out", "adapted", *set_options(**lora, data__validation=0))
    call_training("--recipe", "rocket2", "--dataset", "rooms", "--out", "run2",
                  *set_options(**TINY_ROCKET2, run__steps=1))  # fmt: skip
    call("eval", "run", "--dataset", "dataset", "--out", "report")
    write_report(Path("report"))
    call("publish", "run", "--to", "published", *LICENSE)
    call("publish", "run2", "--to", "published2", "--license", "mit")


def write_report(folder: Path) -> None:
    """Add the results of rollouts to the open-loop report, with the fingerprint of the same policy."""
    policy = json.loads((folder / "open_loop.json").read_text())["policy"]
    counts = {"successes": 3, "episodes": 4}
    report = {"suite": "metaworld", "tasks": {"reach-v3": counts}, "overall": counts, "policy": policy}
    (folder / "evaluation.json").write_text(json.dumps(report))


def call(*words: Any) -> None:
    reset_accelerate_state()
    assert rocket_hf([str(word) for word in words]) == 0, words


def call_training(*words: Any) -> None:
    reset_accelerate_state()
    assert train([str(word) for word in words]) == 0, words
    reset_accelerate_state()
