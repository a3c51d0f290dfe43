"""A LoRA adapter that points to its base on the Hub by id and commit, as PEFT reads it."""

import json
from pathlib import Path

import peft
from huggingface_hub import HfApi
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from rocket_hf.errors import UserError
from rocket_hf.export.export_files import staged, write_processor
from rocket_hf.hub import hub_errors_as_user_errors
from rocket_hf.hub_cards.cards import adapter_card
from rocket_hf.hub_cards.facts import Adapter, Artifact, Provenance, Source
from rocket_hf.modeling.modeling_rocket import HEAD, RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.modeling.robot_adaptation import FILE as ROBOT
from rocket_hf.modeling.robot_adaptation import robot_of as robot_of_config
from rocket_hf.modeling.self_test import versions

from .card_facts import backbone_of, robot_of
from .check import README, check_adapter, refuse_links
from .upload import Hashes, Published, listing, require_repository, send

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # PEFT's name of the policy in a file
NAME = "default"
HALVES = ("lora_A", "lora_B")
MERGED = "publish the merged policy instead: leave --adapter out"


def publish_adapter(
    model: RocketForActionPrediction,
    processor: RocketProcessor,
    repo: str,
    provenance: Provenance,
    *,
    trained_from: Path,
    private: bool = False,
    tag: str | None = None,
    token: str | None = None,
) -> Published:
    """LoRA's weights and what else was trained, as a PEFT adapter of `provenance.base_model`.

    `trained_from` is the folder of the base that was trained. The robot stands beside, for `for_robot`.
    """

    def fill(folder: Path) -> None:
        build_adapter(model, processor, folder, provenance, repo, tag, trained_from)

    return send(fill, repo, private, tag, token)


def publish_adapter_to_folder(
    model: RocketForActionPrediction,
    processor: RocketProcessor,
    folder: str | Path,
    provenance: Provenance,
    *,
    trained_from: Path,
    repo: str | None = None,
    tag: str | None = None,
) -> Path:
    with staged(folder) as staging:
        name = repo or f"you/{Path(folder).name}"
        build_adapter(model, processor, staging, provenance, name, tag, trained_from)
    return Path(folder)


def build_adapter(
    model: RocketForActionPrediction,
    processor: RocketProcessor,
    folder: Path,
    provenance: Provenance,
    repo: str,
    tag: str | None,
    trained_from: Path,
) -> None:
    told = provenance.base_model
    assert told is not None
    base = pin_base(f"{told.id}@{told.revision}" if told.revision else told.id, trained_from)
    adapter = write_adapter(model, base, folder)
    write_processor(folder, processor)
    artifact = describe_adapter(model, processor, repo, tag or "main")
    (folder / README).write_text(adapter_card(artifact, provenance, adapter), encoding="utf-8")
    refuse_links(folder)
    check_adapter(folder)


def describe_adapter(
    model: RocketForActionPrediction, processor: RocketProcessor, repo: str, revision: str
) -> Artifact:
    """Of its parameters, those that were trained."""
    trained = [weight for name, weight in model.named_parameters() if weight.requires_grad and HEAD not in name]
    return Artifact(
        repo=repo,
        revision=revision,
        backbone=backbone_of(model.config),
        parameters=sum(weight.numel() for weight in trained),
        dtype="float32",
        robot=robot_of(model.config, processor),
        versions=versions() | {"peft": peft.__version__},
    )


def pin_base(base: str, folder: Path) -> Source:
    """The base (`owner/name` or `owner/name@revision`) at its commit; its weights must be those in `folder`."""
    repo, _, revision = base.partition("@")
    require_repository(repo)
    with hub_errors_as_user_errors(repo):
        api = HfApi()
        commit = api.model_info(repo, revision=revision or None).sha
        assert commit is not None
        there = listing(api, repo, commit)
    weights = sorted(folder.glob("model*.safetensors"))
    for path in weights:
        if path.name not in there or not Hashes(path).matches(there[path.name]):
            raise UserError(
                f"{path.name} of {repo} at {commit[:8]} is not the one that was trained from: give its --base"
            )
    return Source(repo, commit)


def write_adapter(model: RocketForActionPrediction, base: Source, folder: Path) -> Adapter:
    """Of a model whose LoRA layers lie beside the base's weights, and whose other trained weights require gradients."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    if not layers:
        raise UserError(f"nothing of this policy was trained by LoRA: {MERGED}")
    rank, alpha = one_setting(layers)
    full = full_modules(model)
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
    robot = json.dumps(robot_of_config(model.config), indent=2)
    (folder / ROBOT).write_text(robot + "\n", encoding="utf-8")
    tensors = lora_tensors(layers) | {
        f"{name}.{key}": value for name, module in full.items() for key, value in module.state_dict().items()
    }
    save_file(
        {f"{PREFIX}{name}": value.detach().cpu().contiguous() for name, value in tensors.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    return Adapter(base, rank, alpha, len(layers), sorted(full))


def one_setting(layers: dict[str, LoraLayer]) -> tuple[int, int]:
    settings = {(layer.r[NAME], layer.lora_alpha[NAME]) for layer in layers.values()}
    if len(settings) > 1:
        raise UserError(f"this policy has LoRA layers of several ranks: {MERGED}")
    return next(iter(settings))


def lora_tensors(layers: dict[str, LoraLayer]) -> dict[str, Tensor]:
    halves = {f"{name}.{half}": getattr(layer, half)[NAME] for name, layer in layers.items() for half in HALVES}
    return {f"{name}.{key}": value for name, half in halves.items() for key, value in half.state_dict().items()}


def full_modules(model: RocketForActionPrediction) -> dict[str, nn.Module]:
    """The modules that were trained in full, whole."""
    names = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and ".lora_" not in name and not name.startswith(HEAD)
    ]
    modules = {parent: model.get_submodule(parent) for parent in {name.rpartition(".")[0] for name in names}}
    for name, module in modules.items():
        if any(not parameter.requires_grad for parameter in module.parameters()) or next(module.children(), None):
            raise UserError(f"{name} was trained in part, which an adapter cannot hold: {MERGED}")
    return modules
