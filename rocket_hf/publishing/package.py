"""Packages: all files of a Hub repository, built into a folder, checked, and then pushed or kept.

`PolicyPackage` is a complete VLA policy, `AdapterPackage` a LoRA adapter of one in PEFT's format, and `Rocket2Package`
a ROCKET-2 policy.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub.hf_api import RepoFile
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from rocket_hf.errors import UserError
from rocket_hf.export.policy_folder import (
    cast_copy,
    cast_weights,
    record_rocket2_self_test,
    record_self_test,
    write_config,
    write_policy_files,
    write_processor,
    write_rocket2_files,
)
from rocket_hf.folder_lock import staged_folder
from rocket_hf.foreign_code import MODEL_CLASSES
from rocket_hf.hub import require_repo_id, require_tag
from rocket_hf.hub_cards.cards import Card, adapter_card, model_card, rocket2_card
from rocket_hf.hub_cards.facts import AdapterFacts, CardError, Provenance, Source
from rocket_hf.modeling.modeling_rocket import ALIGNMENT_HEAD_PREFIX, RocketForActionPrediction
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.modeling.robot_adaptation import ROBOT_FILE, robot_settings
from rocket_hf.modeling.self_test import SELF_TEST_FILE
from rocket_hf.training.vla.trainable import merge_lora_weights, policy_from_weights

from .check import ADAPTER_WEIGHTS, check_adapter, check_policy, refuse_links
from .policy_facts import ROCKET2, VLA, PolicyKind, adapter_artifact, policy_artifact, rocket2_artifact
from .upload import LocalFile, Published, list_files, push_folder

SHARD_SIZE = "5GB"
PEFT_PREFIX = "base_model.model."  # PEFT's prefix of the names of the policy's weights
ADAPTER_NAME = "default"
LORA_MATRICES = ("lora_A", "lora_B")
PUBLISH_MERGED = "publish the merged policy instead, without --adapter"


class Package(ABC):
    """Files of one Hub repository. Subclasses write all of them but the card and its figures."""

    kind: PolicyKind | None  # None for an adapter, which AutoModel cannot load

    @abstractmethod
    def write_files(self, folder: Path, repo: str, revision: str) -> Card:
        """Write the files to an empty folder and return the card, which refers to `repo` at `revision`."""

    @abstractmethod
    def check(self, folder: Path) -> None:
        """Raise a UserError that names the first problem of the folder's files."""

    def build(self, folder: Path, repo: str, tag: str | None) -> None:
        """Write all files, including the card, to an empty folder and check them."""
        try:
            self.write_files(folder, repo, tag or "main").write(folder)
        except CardError as error:
            raise UserError(f"the card cannot be written: {error}") from error
        refuse_links(folder)
        self.check(folder)


def push(
    package: Package, repo: str, *, private: bool = False, tag: str | None = None, token: str | None = None
) -> Published:
    """Push a package to `repo` on the Hub in one commit, verify its hashes and tag it.

    If the repository already has the same files, no commit is made.
    """
    require_repo_id(repo)
    if tag is not None:
        require_tag(tag)
    with TemporaryDirectory(prefix="rocket-hf-") as temporary:
        folder = Path(temporary) / "package"
        folder.mkdir()
        package.build(folder, repo, tag)
        return push_folder(folder, repo, private, tag, token)


def write_to_folder(package: Package, folder: str | Path, *, repo: str | None = None, tag: str | None = None) -> Path:
    """Write a package to a new folder, completely or not at all. Its card refers to `repo`."""
    if tag is not None:
        require_tag(tag)
    with staged_folder(folder) as staging:
        package.build(staging, repo or f"you/{Path(folder).name}", tag)
    return Path(folder)


@dataclass
class PolicyPackage(Package):
    """Complete VLA policy: weights without the alignment head, configuration, processor, code, self-test and card."""

    model: RocketForActionPrediction
    processor: RocketProcessor
    provenance: Provenance
    dtype: torch.dtype | None = None  # of the published weights; None keeps the model's
    shard_size: str = SHARD_SIZE
    kind = VLA

    def write_files(self, folder: Path, repo: str, revision: str) -> Card:
        if any(".lora_" in name for name, _ in self.model.named_parameters()):
            raise UserError("the LoRA layers of this model are not merged: call merge_and_unload() first")
        trained = self.model.for_inference()
        policy = cast_weights(trained.for_inference(), self.dtype)
        save_weights(policy, folder, self.shard_size)
        write_policy_files(folder, policy.config, self.processor)
        test = record_self_test(trained, policy, self.processor)
        test.write(folder / SELF_TEST_FILE)
        return model_card(policy_artifact(policy, self.processor, repo, revision, test), self.provenance)

    def check(self, folder: Path) -> None:
        check_policy(folder)


@dataclass
class AdapterPackage(Package):
    """PEFT adapter of `provenance.base_model`: LoRA layers, fully trained modules, robot configuration, processor.

    `trained_from` is the local folder of the base policy; the base on the Hub must have the same weights.
    """

    model: RocketForActionPrediction
    processor: RocketProcessor
    provenance: Provenance
    trained_from: Path
    kind = None

    def write_files(self, folder: Path, repo: str, revision: str) -> Card:
        base = self.pin_base()
        adapter = write_adapter(self.model, base, folder)
        write_processor(folder, self.processor)
        merged = policy_from_weights(self.model.config, merge_lora_weights(self.model))
        # PEFT does not read config.json. AutoModel finds the code in it that explains how an adapter is loaded.
        write_config(folder, merged.config, MODEL_CLASSES)
        record_self_test(merged, merged, self.processor).write(folder / SELF_TEST_FILE)
        artifact = adapter_artifact(self.model, self.processor, repo, revision)
        return adapter_card(artifact, self.provenance, adapter)

    def pin_base(self) -> Source:
        """Return the base policy at its commit, after comparing its weights with those that were trained from."""
        base = self.provenance.base_model
        assert base is not None, "an adapter has a base model"
        require_repo_id(base.id)
        commit, files = list_files(base.id, base.revision)
        pinned = Source(base.id, commit)
        require_base_weights(pinned, files, self.trained_from)
        return pinned

    def check(self, folder: Path) -> None:
        check_adapter(folder)


@dataclass
class Rocket2Package(Package):
    """ROCKET-2 policy: weights, configuration, code, self-test and card. It has no processor.

    `keep` names the auxiliary heads of training that stay in the policy, because people like to inspect them.
    """

    model: Rocket2ForActionPrediction
    provenance: Provenance
    keep: Iterable[str] = ()
    dtype: torch.dtype | None = None
    shard_size: str = SHARD_SIZE
    kind = ROCKET2

    def write_files(self, folder: Path, repo: str, revision: str) -> Card:
        trained = self.model.for_inference(self.keep)
        policy = cast_copy(trained, self.dtype)
        save_weights(policy, folder, self.shard_size)
        write_rocket2_files(folder, policy.config)
        test = record_rocket2_self_test(trained, policy)
        test.write(folder / SELF_TEST_FILE)
        return rocket2_card(rocket2_artifact(policy, repo, revision, test), self.provenance)

    def check(self, folder: Path) -> None:
        check_policy(folder)


def save_weights(policy: RocketForActionPrediction | Rocket2ForActionPrediction, folder: Path, shard_size: str) -> None:
    require_shard_size(shard_size)
    policy.save_pretrained(folder, max_shard_size=shard_size)


def require_shard_size(text: str) -> None:
    match = re.fullmatch(r"(\d+(\.\d+)?)\s*[KMGT]B", text, re.IGNORECASE)
    if match is None or not float(match[1]) > 0:
        raise UserError(
            f"invalid shard size {text!r}: write a positive number with KB, MB, GB or TB, such as {SHARD_SIZE}"
        )


# Files of an adapter, which refers to its base policy by Hub id and commit


def require_base_weights(base: Source, files: dict[str, RepoFile], folder: Path) -> None:
    """Raise if the weights of the base on the Hub differ from those in `folder`, which the adapter was trained on."""
    for path in sorted(folder.glob("model*.safetensors")):
        if path.name not in files or not LocalFile(path).matches(files[path.name]):
            raise UserError(
                f"{path.name} of {base.id} at commit {base.revision} is not the file that the adapter was trained on: "
                "pass the right repository and revision with --base"
            )


def write_adapter(model: RocketForActionPrediction, base: Source, folder: Path) -> AdapterFacts:
    """Write the LoRA layers and the other trained weights of a model, and the robot's configuration for `for_robot`.

    The LoRA layers are not merged; the other trained weights are those that require gradients.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    if not layers:
        raise UserError(f"this policy has no LoRA layers, so it has no adapter: {PUBLISH_MERGED}")
    rank, alpha = common_rank_and_alpha(layers)
    full = fully_trained_modules(model)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=sorted(layers),
        modules_to_save=sorted(full) or None,
        base_model_name_or_path=base.id,
        revision=base.revision,
        inference_mode=True,
    )
    config.save_pretrained(folder)
    robot = json.dumps(robot_settings(model.config), indent=2)
    (folder / ROBOT_FILE).write_text(robot + "\n", encoding="utf-8")
    tensors = lora_tensors(layers) | {
        f"{name}.{key}": value for name, module in full.items() for key, value in module.state_dict().items()
    }
    save_file(
        {f"{PEFT_PREFIX}{name}": value.detach().cpu().contiguous() for name, value in tensors.items()},
        folder / ADAPTER_WEIGHTS,
        metadata={"format": "pt"},
    )
    return AdapterFacts(base, rank, alpha, len(layers), sorted(full))


def common_rank_and_alpha(layers: dict[str, LoraLayer]) -> tuple[int, int]:
    settings = {(layer.r[ADAPTER_NAME], layer.lora_alpha[ADAPTER_NAME]) for layer in layers.values()}
    if len(settings) > 1:
        raise UserError(f"the LoRA layers of this policy have different ranks: {PUBLISH_MERGED}")
    return next(iter(settings))


def lora_tensors(layers: dict[str, LoraLayer]) -> dict[str, Tensor]:
    matrices = {
        f"{name}.{matrix}": getattr(layer, matrix)[ADAPTER_NAME]
        for name, layer in layers.items()
        for matrix in LORA_MATRICES
    }
    return {f"{name}.{key}": value for name, matrix in matrices.items() for key, value in matrix.state_dict().items()}


def fully_trained_modules(model: RocketForActionPrediction) -> dict[str, nn.Module]:
    """Return the modules that were trained without LoRA, by name. All parameters of such a module must be trained."""
    names = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and ".lora_" not in name and not name.startswith(ALIGNMENT_HEAD_PREFIX)
    ]
    modules = {parent: model.get_submodule(parent) for parent in {name.rpartition(".")[0] for name in names}}
    for name, module in modules.items():
        if any(not parameter.requires_grad for parameter in module.parameters()) or next(module.children(), None):
            raise UserError(f"only a part of the module {name} was trained, which PEFT cannot store: {PUBLISH_MERGED}")
    return modules
