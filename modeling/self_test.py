"""Self-test of a published policy: checks that it still gives the actions that it gave where it was published.

`self_test.safetensors` holds one observation, the trained policy's actions for it, and a tolerance for each dtype. The
test finds a library version that changes the policy when the policy is loaded, before a robot moves.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import UserError

SELF_TEST_FILE = "self_test.safetensors"
METADATA_KEY = "self_test"
BATCH_PREFIX, IMAGE_PREFIX = "batch.", "image."  # of tensors in the file


@dataclass
class SelfTest:
    """Recorded observation, actions and tolerances.

    Distances are root mean squares, relative to that of the recorded actions.
    """

    task: str
    images: dict[str, Tensor]  # by camera, (3, H, W) uint8, as the robot's cameras give them
    state: Tensor  # (S,) in robot units
    batch: dict[str, Tensor]  # output of the processor for the observation, with the noise
    actions: Tensor  # (1, chunk, A), normalized, of the trained policy
    robot_actions: Tensor  # the same actions in robot units
    tolerances: dict[str, float]  # by dtype, largest accepted distance of the actions
    image_effect: float  # distance of the actions when the images are inverted
    versions: dict[str, str]  # of the libraries with which the policy was published

    @property
    def effects(self) -> dict[str, float]:
        return {"images": self.image_effect}

    def write(self, path: Path) -> None:
        tensors = {"state": self.state, "actions": self.actions, "robot_actions": self.robot_actions}
        tensors |= {f"{BATCH_PREFIX}{name}": value for name, value in self.batch.items()}
        tensors |= {f"{IMAGE_PREFIX}{name}": value for name, value in self.images.items()}
        metadata = {name: getattr(self, name) for name in ("task", "tolerances", "image_effect", "versions")}
        write_tensors(path, tensors, metadata)


def read_self_test(path: Path) -> SelfTest:
    tensors, metadata = read_tensors(path)
    parts: dict[str, dict[str, Tensor]] = {BATCH_PREFIX: {}, IMAGE_PREFIX: {}, "": {}}
    for name, tensor in tensors.items():
        prefix = next(prefix for prefix in parts if name.startswith(prefix))
        parts[prefix][name.removeprefix(prefix)] = tensor
    try:
        test = SelfTest(batch=parts[BATCH_PREFIX], images=parts[IMAGE_PREFIX], **parts[""], **metadata)  # type: ignore
        check_self_test(test)
    except (TypeError, ValueError) as error:  # missing or unknown tensors, or metadata of other types
        raise UserError(f"{path} is not a complete self-test ({error}): publish the policy again") from error
    return test


def check_self_test(test: SelfTest) -> None:
    """Raise ValueError if the self-test lacks a value or has one of another form."""
    check_tolerances(test.tolerances, "tolerances")
    check_finite([test.image_effect], "image_effect")
    check_versions(test.versions)
    if not isinstance(test.task, str) or "images" not in test.batch or not test.images:
        raise ValueError("it has no observation")
    if test.state.dim() != 1 or test.actions.dim() != 3 or test.actions.shape != test.robot_actions.shape:
        raise ValueError("its state or its actions have a wrong shape")


def check_tolerances(tolerances: Any, name: str) -> None:
    if not isinstance(tolerances, dict) or not {"float32", "bfloat16"} <= tolerances.keys():
        raise ValueError(f"it has no {name} for float32 and bfloat16")
    check_finite(tolerances.values(), name)


def check_finite(numbers: Iterable[Any], name: str) -> None:
    if not all(isinstance(number, float | int) and math.isfinite(number) for number in numbers):
        raise ValueError(f"its {name} are not finite numbers")


def check_versions(versions: Any) -> None:
    if not isinstance(versions, dict) or not set(versions) <= set(library_versions()):
        raise ValueError("its versions are not those of torch and transformers")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a self-test file: tensors, and JSON metadata under one key."""
    contiguous = {name: value.contiguous().cpu() for name, value in tensors.items()}
    save_file(contiguous, path, metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the metadata of a self-test file."""
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads(file.metadata()[METADATA_KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable self-test ({error}): download the policy again or publish it again"
        ) from error


def find_self_test(source: str, commit: str | None) -> Path:
    """Return the path of the self-test in a policy's folder, or in a commit of its Hub repository."""
    if not source:
        raise UserError(
            "this model has no self-test, because it was not loaded from a folder or Hub repository: load it with "
            "from_pretrained"
        )
    path = Path(source) / SELF_TEST_FILE
    if not Path(source).is_dir():
        try:
            return Path(hf_hub_download(source, SELF_TEST_FILE, revision=commit))
        except RemoteEntryNotFoundError:
            pass  # reported like a folder without the file
    if not path.is_file():
        raise UserError(
            f"{source} has no {SELF_TEST_FILE}: publish the policy with `rocket-hf publish`, which writes it"
        )
    return path


def self_test_path(model: Any) -> Path:
    """Return the path of the self-test that was published beside a model's weights."""
    commit = getattr(model.config, "_commit_hash", None)  # newer versions of transformers do not set it
    return find_self_test(model.config._name_or_path, commit or model.revision)


def library_versions() -> dict[str, str]:
    return {"torch": str(torch.__version__), "transformers": transformers.__version__}


def relative_distance(values: Tensor, reference: Tensor) -> float:
    """Return the root mean square of `values - reference`, relative to that of `reference` (at least 0.001)."""
    difference, size = (
        tensor.detach().cpu().double().square().mean().sqrt() for tensor in (values - reference, reference)
    )
    return float(difference / size.clamp_min(1e-3))


def with_inverted_images(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the batch with its images, which must be uint8, replaced by their negatives."""
    return {**batch, "images": 255 - batch["images"]}


@dataclass
class SelfTestReport:
    """Result of a self-test. Distances are root mean squares, relative to that of the recorded actions.

    Published code of all versions returns these fields, so they must not be renamed.
    """

    dtype: str
    distance: float  # of the actions from the recorded ones
    tolerance: float
    image_effect: float  # distance of the actions when the images are inverted
    image_effect_wanted: float  # the same distance when the policy was published
    versions: dict[str, str]  # of the libraries with which the policy was published

    def failure(self) -> str:
        """Return why the test failed, or an empty string. Comparisons are written so that NaN fails."""
        if not self.distance <= self.tolerance:
            return (
                f"the actions differ by {self.distance:.2%} from those that this policy was published with; in "
                f"{self.dtype} they may differ by {self.tolerance:.2%}"
            )
        if not self.image_effect >= self.image_effect_wanted / 2:
            return (
                f"inverting the images changes the actions by {self.image_effect:.2%}, but by "
                f"{self.image_effect_wanted:.2%} where this policy was published"
            )
        return ""

    def summary_lines(self) -> list[str]:
        return [
            f"actions differ by {self.distance:.2%} in {self.dtype} (at most {self.tolerance:.2%})",
            f"inverting the images changes the actions by {self.image_effect:.2%}",
        ]


def tolerance_dtype(model: Any) -> str:
    """Return the dtype whose tolerance applies to a model."""
    return "float32" if model.dtype in (torch.float32, torch.float64) else "bfloat16"


def run_self_test(model: Any, test: SelfTest) -> SelfTestReport:
    """Run the policy on the recorded observation, also with inverted images; raise `UserError` on failure."""
    device = next(model.parameters()).device
    batch = {name: value.to(device) for name, value in test.batch.items()}
    actions, inverted_actions = (
        model.predict_action_chunk(**inputs).float().cpu() for inputs in (batch, with_inverted_images(batch))
    )
    if actions.shape != test.actions.shape:
        raise UserError(
            f"recorded are actions of shape {tuple(test.actions.shape)}, but the policy gives {tuple(actions.shape)}: "
            "the self-test is of another policy, publish it again"
        )
    report = SelfTestReport(
        dtype=str(model.dtype).removeprefix("torch."),
        distance=relative_distance(actions, test.actions),
        tolerance=test.tolerances[tolerance_dtype(model)],
        image_effect=relative_distance(inverted_actions, actions),
        image_effect_wanted=test.image_effect,
        versions=test.versions,
    )
    raise_on_failure(report.failure(), report.versions)
    return report


def raise_on_failure(failure: str, published_versions: dict[str, str]) -> None:
    """Raise `UserError` with the library versions then and now if a self-test failed."""
    if failure:
        installed = library_versions()
        then = " and ".join(f"{name} {version}" for name, version in published_versions.items())
        now = " and ".join(f"{name} {installed[name]}" for name in published_versions)
        raise UserError(
            f"self-test failed: {failure}. It was published with {then}; installed are {now}: install the "
            "published versions, or download the policy again if they are the same"
        )
