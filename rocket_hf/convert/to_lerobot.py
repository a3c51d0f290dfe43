"""Export of pi0, pi0.5 and SmolVLA to a folder that lerobot's policy class loads strictly, with the same actions.

lerobot weights that do not affect the actions (see lerobot_names.py) are written as zeros. lerobot finds the tokenizer
and SmolVLA's vision-language model by names. By default these are paths of copies in the folder, which need no network.
lerobot does not search relative to the policy, so the paths are written as the user typed the folder: a relative one is
valid wherever lerobot starts beside the folder, while an absolute one would name a folder of this machine alone.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rocket_hf.errors import UserError
from rocket_hf.export.policy_folder import ACTION, STATE, lerobot_features, lerobot_normalization
from rocket_hf.files import write_json
from rocket_hf.folder_lock import staged_folder
from rocket_hf.modeling.configuration_pi0 import Pi0Config
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.configuration_smolvla import SmolVLAConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor

from .lerobot_folder import NORMALIZER
from .lerobot_names import EXPERT, TIED_HEAD, UNUSED, rules_to_lerobot
from .plan import Rename
from .smolvlm_folder import read_smolvlm_settings, write_smolvlm_folder

# lerobot's names of the processor step that completes a prompt.
PROMPT_STEPS = {
    "pi0": "pi0_new_line_processor",
    "pi05": "pi05_prepare_state_tokenizer_processor_step",
    "smolvla": "smolvla_new_line_processor",
}


@dataclass(frozen=True)
class ExternalNames:
    """Folders or Hub ids from which lerobot loads the tokenizer and SmolVLA's vision-language model."""

    tokenizer: str
    vlm: str | None


def to_lerobot(
    model: RocketForActionPrediction,
    processor: RocketProcessor,
    folder: Path,
    tokenizer: str | None = None,
    vlm: str | None = None,
) -> ExternalNames:
    """Write the folder atomically; return the names under which lerobot will load the rest.

    Args:
        model: The policy.
        processor: Its processor.
        folder: New folder.
        tokenizer: Folder or Hub id of the tokenizer; by default a copy of the processor's is written.
        vlm: Folder or Hub id of SmolVLA's vision-language model; by default its configuration is written.
    """
    lerobot_type(model.config)
    check_preparation(model.config, processor)
    policy = model.config.policy_config
    if isinstance(policy, SmolVLAConfig):
        check_smolvlm(policy, vlm)
    elif vlm:
        raise UserError("only SmolVLA has a vision-language model of its own: remove --vlm")
    with staged_folder(folder) as staging:
        names = write_external_files(staging, folder, processor, policy, tokenizer, vlm)
        save_file(lerobot_weights(model), staging / "model.safetensors", metadata={"format": "pt"})
        write_json(staging / "config.json", lerobot_config(model.config, processor, names))
        write_processors(staging, model.config, processor, names.tokenizer)
    return names


def check_smolvlm(policy: SmolVLAConfig, vlm: str | None) -> None:
    """Raise UserError if lerobot cannot build the policy from this vision-language model."""
    if policy.image_start_ids or policy.image_end_ids:
        raise UserError("policies with image_start_ids or image_end_ids cannot be converted to lerobot's SmolVLA")
    if not vlm:
        return
    settings = read_smolvlm_settings({}, vlm)
    stated = (settings.language_heads(policy.width), settings.vision_heads(policy.vision_width))
    if stated != (policy.heads, policy.vision_heads) or settings.norm_eps(policy.width) != policy.rms_norm_eps:
        raise UserError(
            f"the vision-language model {vlm} has other sizes than this policy, whose language model is {policy.width} "
            f"wide and has {policy.heads} heads: leave out --vlm, or pass the one that the policy was made from"
        )


def write_external_files(
    staging: Path,
    final: Path,
    processor: RocketProcessor,
    policy: Pi0Config | SmolVLAConfig,
    tokenizer: str | None,
    vlm: str | None,
) -> ExternalNames:
    """Write what lerobot loads by name, unless names were given. `final` is the later path of the folder `staging`."""
    if isinstance(policy, SmolVLAConfig):
        if vlm is None:
            write_smolvlm_folder(staging / "vlm", policy, processor.tokenizer)
        vlm_name = vlm if vlm else str(final / "vlm")
        return ExternalNames(tokenizer if tokenizer else vlm_name, vlm_name)
    if tokenizer is None:
        processor.tokenizer.save_pretrained(staging / "tokenizer")
    return ExternalNames(tokenizer if tokenizer else str(final / "tokenizer"), None)


def lerobot_type(config: RocketConfig) -> str:
    """Return lerobot's name of the policy type."""
    policy = config.policy_config
    if isinstance(policy, Pi0Config):
        return policy.variant
    if isinstance(policy, SmolVLAConfig):
        return "smolvla"
    raise UserError(f"lerobot has no policy of type {policy.model_type}: only pi0, pi0.5 and SmolVLA can be converted")


def check_preparation(config: RocketConfig, processor: RocketProcessor) -> None:
    """Raise UserError if lerobot's classes would prepare other inputs than the processor."""
    policy = config.policy_config
    expected = {"clip_normalized": False} | {
        name: getattr(policy, name) for name in ("resize", "interpolation", "prompt_template", "task_text")
    }
    for name, value in expected.items():
        if getattr(processor, name) != value:
            raise UserError(
                f"The processor of this policy has {name}={getattr(processor, name)!r}, but lerobot always uses "
                f"{value!r}: the policy cannot be converted"
            )


def lerobot_weights(model: RocketForActionPrediction) -> dict[str, Tensor]:
    """Return the weights under lerobot's names, with zeros for those that this package does not have."""
    policy_type, policy = lerobot_type(model.config), model.config.policy_config
    rules = rules_to_lerobot(policy_type)
    state = model.for_inference().state_dict()
    weights = {lerobot_name(name, rules): weight.contiguous() for name, weight in state.items()}
    embedding = state["policy.embed_tokens.weight"]
    for name in UNUSED[policy_type]:
        width = policy.expert_width if name.startswith(EXPERT) else policy.width
        shape = (policy.vocab_size, width) if name.endswith("lm_head.weight") else (width,)
        weights[f"model.{name}"] = embedding.new_zeros(shape)
    if policy_type != "smolvla":
        weights[f"model.{TIED_HEAD}"] = embedding.clone()
    return weights


def lerobot_name(name: str, rules: list[Rename]) -> str:
    for rule in rules:
        if re.fullmatch(rule.source, name):
            return re.sub(rule.source, rule.target, name)
    raise ValueError(f"lerobot's policy has no weight that corresponds to {name}")


def lerobot_config(config: RocketConfig, processor: RocketProcessor, names: ExternalNames) -> dict[str, Any]:
    policy_type, policy = lerobot_type(config), config.policy_config
    inputs, outputs = lerobot_features(config)
    size = [policy.image_size, policy.image_size]
    settings = {
        "type": policy_type,
        "input_features": inputs,
        "output_features": outputs,
        "normalization_mapping": lerobot_normalization(config),
        "chunk_size": config.chunk_size,
        "n_action_steps": config.chunk_size,
        "max_action_dim": policy.max_action_dim,
        "max_state_dim": policy.max_state_dim,
        "tokenizer_max_length": processor.max_prompt_length,
    }
    if policy_type == "smolvla":
        return settings | {
            "resize_imgs_with_padding": size,
            "num_steps": policy.denoising_steps,
            "num_vlm_layers": policy.depth,
            "self_attn_every_n_layers": policy.self_attention_every,
            "expert_width_multiplier": expert_factor(policy),
            "vlm_model_name": names.vlm,
            "load_vlm_weights": False,
        }
    names_of_actions = {"action_feature_names": list(config.action_names)} if config.action_names else {}
    return (
        settings
        | names_of_actions
        | {
            "image_resolution": size,
            "num_inference_steps": policy.denoising_steps,
            "dtype": "bfloat16" if config.dtype == torch.bfloat16 else "float32",
        }
    )


def expert_factor(policy: SmolVLAConfig) -> float:
    """Return the number with which lerobot multiplies the width, and truncates, to get the width of the expert."""
    factor = policy.expert_width / policy.width
    return factor if int(policy.width * factor) == policy.expert_width else math.nextafter(factor, math.inf)


def write_processors(folder: Path, config: RocketConfig, processor: RocketProcessor, tokenizer: str) -> None:
    """Write lerobot's two processor pipelines, with the steps in the order of lerobot's policies, and statistics."""
    policy_type = lerobot_type(config)
    inputs, outputs = lerobot_features(config)
    mapping = lerobot_normalization(config)

    def normalizer(name: str, normalized: dict[str, Any]) -> dict[str, Any]:
        return {"registry_name": name, "config": {"eps": 1e-8, "features": normalized, "norm_map": mapping}}

    normalize = normalizer(NORMALIZER, inputs | outputs)
    to_device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
    prompt = [
        {"registry_name": PROMPT_STEPS[policy_type], "config": {}},
        {
            "registry_name": "tokenizer_processor",
            "config": {
                "tokenizer_name": tokenizer,
                "max_length": processor.max_prompt_length,
                "padding_side": "right",
                "padding": "max_length",
            },
        },
    ]
    preprocessor = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        *([normalize, *prompt, to_device] if policy_type == "pi05" else [*prompt, to_device, normalize]),
    ]
    postprocessor = [normalizer("unnormalizer_processor", outputs), to_device]
    statistics = lerobot_statistics(processor)
    for name, steps in (("policy_preprocessor", preprocessor), ("policy_postprocessor", postprocessor)):
        for number, step in enumerate(steps):
            if "normalizer" in step["registry_name"]:
                step["state_file"] = f"{name}_step_{number}_{step['registry_name']}.safetensors"
                save_file(statistics, folder / step["state_file"])
        write_json(folder / f"{name}.json", {"name": name, "steps": steps})


def lerobot_statistics(processor: RocketProcessor) -> dict[str, Tensor]:
    """Return the statistics under lerobot's names. Raise UserError for a per-dimension mask, which lerobot lacks."""
    tensors = {}
    for part, feature in (("state", STATE), ("action", ACTION)):
        for key, values in processor.statistics.get(part, {}).items():
            if key == "mask" and not all(values):
                raise UserError(
                    f"The {part} normalization of this policy excludes single dimensions, which lerobot does not "
                    "support: the policy cannot be converted"
                )
            if key != "mask":
                tensors[f"{feature}.{key}"] = torch.tensor(values, dtype=torch.float32)
    return tensors
