"""Packages: all files of a Hub repository, built into a folder, checked, and then pushed or kept.

`PolicyPackage` is a complete VLA policy, `AdapterPackage` a LoRA adapter of one, `Rocket2Package` a ROCKET-2 policy.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import peft
import torch

from rocket_hf.errors import UserError
from rocket_hf.export.export_files import staged_folder, write_policy_files, write_processor, write_rocket2_files
from rocket_hf.export.policy_kinds import ROCKET2, VLA, PolicyKind
from rocket_hf.export.rocket2_self_test import cast_copy, record_rocket2_self_test
from rocket_hf.export.self_test import cast_weights, record_self_test
from rocket_hf.hub import require_repo_id, require_tag
from rocket_hf.hub_cards.cards import Card, adapter_card, model_card, rocket2_card
from rocket_hf.hub_cards.facts import Artifact, CardError, Provenance, RobotFacts, Rocket2Artifact, Source
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.configuration_rocket2 import INTERACTIONS
from rocket_hf.modeling.modeling_rocket import ALIGNMENT_HEAD_PREFIX, RocketForActionPrediction
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.modeling.rocket2_self_test import Rocket2SelfTest
from rocket_hf.modeling.self_test import SELF_TEST_FILE, SelfTest, library_versions
from rocket_hf.training.vla.trainable import merge_lora_weights, policy_from_weights

from .adapter import require_base_weights, write_adapter
from .check import check_adapter, check_policy, refuse_links
from .upload import Published, list_files, push_folder

SHARD_SIZE = "5GB"


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


# Facts for the card, read from the policy


def policy_artifact(
    policy: RocketForActionPrediction, processor: RocketProcessor, repo: str, revision: str, test: SelfTest
) -> Artifact:
    return Artifact(
        repo=repo,
        revision=revision,
        backbone=backbone_name(policy.config),
        parameters=sum(parameter.numel() for parameter in policy.parameters()),
        dtype=str(policy.dtype).removeprefix("torch."),
        robot=robot_facts(policy.config, processor),
        versions=test.versions,
        tolerances=test.tolerances,
        image_effect=test.image_effect,
    )


def adapter_artifact(
    model: RocketForActionPrediction, processor: RocketProcessor, repo: str, revision: str
) -> Artifact:
    trained = [
        weight
        for name, weight in model.named_parameters()
        if weight.requires_grad and ALIGNMENT_HEAD_PREFIX not in name
    ]
    return Artifact(
        repo=repo,
        revision=revision,
        backbone=backbone_name(model.config),
        parameters=sum(weight.numel() for weight in trained),
        dtype="float32",
        robot=robot_facts(model.config, processor),
        versions=library_versions() | {"peft": peft.__version__},
    )


def rocket2_artifact(
    policy: Rocket2ForActionPrediction, repo: str, revision: str, test: Rocket2SelfTest
) -> Rocket2Artifact:
    config = policy.config
    return Rocket2Artifact(
        repo=repo,
        revision=revision,
        parameters=sum(parameter.numel() for parameter in policy.parameters()),
        dtype=str(policy.dtype).removeprefix("torch."),
        image_size=tuple(config.image_size),
        actions=[(*factor, rest) for factor, rest in zip(config.factors.items(), config.rest_action, strict=True)],
        minecraft=config.action_space == "minecraft",
        interactions={name: number for name, number in INTERACTIONS.items() if number < config.interactions},
        window_steps=config.window_steps,
        heads=list(config.auxiliary_heads),
        versions=test.versions,
        tolerances=test.tolerances,
        effects=test.effects,
    )


def backbone_name(config: RocketConfig) -> str:
    policy = config.policy_config.to_dict()
    return policy.get("variant", policy["model_type"].removeprefix("rocket_"))


def robot_facts(config: RocketConfig, processor: RocketProcessor) -> RobotFacts:
    return RobotFacts(
        cameras=list(config.cameras),
        image_size=processor.image_size,
        resize=processor.resize,
        state_dim=config.state_dim,
        action_dim=config.action_dim,
        chunk_size=config.chunk_size,
        state_normalization=processor.state_normalization,
        action_normalization=processor.action_normalization,
        state_names=list(config.state_names) if config.state_names else None,
        action_names=list(config.action_names) if config.action_names else None,
        fps=config.fps,
        example_task=config.example_task,
    )
