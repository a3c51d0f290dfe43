"""LoRA adapters in PEFT's format. An adapter refers to its base policy by Hub id and commit."""

import json
from pathlib import Path

from huggingface_hub.hf_api import RepoFile
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from rocket_hf.errors import UserError
from rocket_hf.hub_cards.facts import AdapterFacts, Source
from rocket_hf.modeling.modeling_rocket import ALIGNMENT_HEAD_PREFIX, RocketForActionPrediction
from rocket_hf.modeling.robot_adaptation import ROBOT_FILE, robot_settings

from .upload import LocalFile

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # PEFT's prefix of the names of the policy's weights
ADAPTER_NAME = "default"
LORA_MATRICES = ("lora_A", "lora_B")
PUBLISH_MERGED = "publish the merged policy instead, without --adapter"


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
        {f"{PREFIX}{name}": value.detach().cpu().contiguous() for name, value in tensors.items()},
        folder / WEIGHTS,
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
