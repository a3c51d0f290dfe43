"""A published policy's check of itself: does it still do here what it did where it was published?

`self_test.safetensors` holds one observation with the actions that the trained policy gave for it, and how far off a
dtype may be. A library that changes a policy's behaviour is found when the policy is loaded, not on the robot.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import hf_hub_download
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

FILE = "self_test.safetensors"
BATCH, IMAGE = "batch.", "image."  # prefixes of tensors in the file


@dataclass
class SelfTest:
    """Distances are root mean squares, as shares of that of the actions."""

    task: str
    images: dict[str, Tensor]  # by camera, (3, H, W) uint8, as the robot's
    state: Tensor  # (S,) in robot units
    batch: dict[str, Tensor]  # what the processor made of it, with the noise
    actions: Tensor  # (1, chunk, A) normalised, of the trained policy
    robot_actions: Tensor  # the same in robot units
    tolerances: dict[str, float]  # by dtype, how far off the actions may be
    image_effect: float  # how far off they are when the images are inverted
    versions: dict[str, str]

    @property
    def effects(self) -> dict[str, float]:
        return {"images": self.image_effect}

    def write(self, path: Path) -> None:
        tensors = {"state": self.state, "actions": self.actions, "robot_actions": self.robot_actions}
        tensors |= {f"{BATCH}{name}": value for name, value in self.batch.items()}
        tensors |= {f"{IMAGE}{name}": value for name, value in self.images.items()}
        told = {name: getattr(self, name) for name in ("task", "tolerances", "image_effect", "versions")}
        tensors = {name: value.contiguous().cpu() for name, value in tensors.items()}
        save_file(tensors, path, metadata={"self_test": json.dumps(told, sort_keys=True)})


def read_self_test(path: Path) -> SelfTest:
    with safe_open(path, "pt") as file:
        told = json.loads(file.metadata()["self_test"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
    parts: dict[str, dict[str, Tensor]] = {BATCH: {}, IMAGE: {}, "": {}}
    for name, tensor in tensors.items():
        prefix = next(prefix for prefix in parts if name.startswith(prefix))
        parts[prefix][name.removeprefix(prefix)] = tensor
    return SelfTest(batch=parts[BATCH], images=parts[IMAGE], **parts[""], **told)  # type: ignore[arg-type]


def find_self_test(source: str, commit: str | None) -> Path:
    """The file of the folder or of the Hub repository that a model was loaded from, of the same commit."""
    if not source:
        raise ValueError("this model was not loaded from a folder or a repository, so there is no self-test of it")
    if Path(source).is_dir():
        path = Path(source) / FILE
        if not path.is_file():
            raise ValueError(f"{source} holds no {FILE}: `rocket-hf publish` writes one")
        return path
    return Path(hf_hub_download(source, FILE, revision=commit))


def own_self_test(model: Any) -> Path:
    """The file that lies beside a model's weights."""
    commit = getattr(model.config, "_commit_hash", None)  # which newer versions of transformers do not note
    return find_self_test(model.config._name_or_path, commit or model.revision)


def versions() -> dict[str, str]:
    return {"torch": str(torch.__version__), "transformers": transformers.__version__}


def distance(actions: Tensor, wanted: Tensor) -> float:
    """The root mean square of the difference, as a share of that of the actions wanted."""
    difference, size = (value.detach().cpu().double().square().mean().sqrt() for value in (actions - wanted, wanted))
    return float(difference / size.clamp_min(1e-3))


def inverted(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same batch with every image (uint8) turned into its negative."""
    return {**batch, "images": 255 - batch["images"]}


@dataclass
class SelfTestReport:
    dtype: str
    distance: float
    tolerance: float
    image_effect: float
    image_effect_wanted: float
    versions: dict[str, str]  # with which the policy was published

    def problem(self) -> str:
        """What is wrong, in a sentence without its end; empty if nothing is. (A distance may be no number.)"""
        if not self.distance <= self.tolerance:
            return (
                f"the actions are {self.distance:.2%} off those that this policy was published with, in {self.dtype} "
                f"they may be {self.tolerance:.2%} off"
            )
        if not self.image_effect >= self.image_effect_wanted / 2:
            return (
                f"other images change the actions by {self.image_effect:.2%}, "
                f"where this policy was published they did by {self.image_effect_wanted:.2%}"
            )
        return ""

    def sentences(self) -> list[str]:
        return [
            f"actions {self.distance:.2%} off in {self.dtype}, at most {self.tolerance:.2%}",
            f"other images change them by {self.image_effect:.2%}",
        ]


def kind_of_number(model: Any) -> str:
    """Whose tolerance counts for a model: that of the nearest dtype."""
    return "float32" if model.dtype in (torch.float32, torch.float64) else "bfloat16"


def run_self_test(model: Any, test: SelfTest) -> SelfTestReport:
    """Runs the policy twice, on the observation and on its negative; ValueError if it is not what was published."""
    device = next(model.parameters()).device
    batch = {name: value.to(device) for name, value in test.batch.items()}
    actions, others = (model.predict_action_chunk(**given).float().cpu() for given in (batch, inverted(batch)))
    report = SelfTestReport(
        dtype=str(model.dtype).removeprefix("torch."),
        distance=distance(actions, test.actions),
        tolerance=test.tolerances[kind_of_number(model)],
        image_effect=distance(others, actions),
        image_effect_wanted=test.image_effect,
        versions=test.versions,
    )
    require_none(report.problem(), report.versions)
    return report


def require_none(problem: str, published_with: dict[str, str]) -> None:
    if problem:
        here = versions()
        then = " and ".join(f"{name} {version}" for name, version in published_with.items())
        now = " and ".join(f"{name} {here[name]}" for name in published_with)
        raise ValueError(f"self-test failed: {problem}; it was written with {then}, here are {now}")
