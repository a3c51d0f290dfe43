"""Export of pi0, pi0.5 and SmolVLA to a folder that lerobot's policy class loads strictly, with the same actions.

lerobot weights that do not affect the actions (see lerobot_names.py) are written as zeros.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rocket_hf.errors import UserError
from rocket_hf.export.export_files import staged_folder
from rocket_hf.export.lerobot_pipelines import ACTION, STATE, features, normalization
from rocket_hf.files import write_json
from rocket_hf.modeling.configuration_pi0 import Pi0Config
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.configuration_smolvla import SmolVLAConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor

from .lerobot_folder import NORMALIZER
from .lerobot_names import EXPERT, TIED_HEAD, UNUSED, rules_to_lerobot
from .plan import Rename

# Hub ids of the tokenizers, and lerobot's names of the processor step that completes a prompt.
TOKENIZERS = {
    "pi0": "google/paligemma-3b-pt-224",
    "pi05": "google/paligemma-3b-pt-224",
    "smolvla": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
}
PROMPT_STEPS = {
    "pi0": "pi0_new_line_processor",
    "pi05": "pi05_prepare_state_tokenizer_processor_step",
    "smolvla": "smolvla_new_line_processor",
}


def to_lerobot(
    model: RocketForActionPrediction, processor: RocketProcessor, folder: Path, tokenizer: str | None = None
) -> Path:
    """Write the folder atomically. lerobot will load the tokenizer from `tokenizer`, a folder or a Hub id."""
    policy_type = lerobot_type(model.config)
    try:
        with staged_folder(folder) as staging:
            save_file(lerobot_weights(model), staging / "model.safetensors", metadata={"format": "pt"})
            write_json(staging / "config.json", lerobot_config(model.config, processor))
            write_processors(staging, model.config, processor, tokenizer or TOKENIZERS[policy_type])
    except OSError as error:
        raise UserError(f"Cannot write {folder}: {error}") from error
    return folder


def lerobot_type(config: RocketConfig) -> str:
    """Return lerobot's name of the policy type."""
    policy = config.policy_config
    if isinstance(policy, Pi0Config):
        return policy.variant
    if isinstance(policy, SmolVLAConfig):
        return "smolvla"
    raise UserError(f"lerobot has no policy of type {policy.model_type}: only pi0, pi0.5 and SmolVLA can be converted")


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


def lerobot_config(config: RocketConfig, processor: RocketProcessor) -> dict[str, Any]:
    policy_type, policy = lerobot_type(config), config.policy_config
    inputs, outputs = features(config)
    size = [policy.image_size, policy.image_size]
    settings = {
        "type": policy_type,
        "input_features": inputs,
        "output_features": outputs,
        "normalization_mapping": normalization(config),
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
            "expert_width_multiplier": policy.expert_width / policy.width,
            "load_vlm_weights": False,
        }
    return settings | {
        "image_resolution": size,
        "num_inference_steps": policy.denoising_steps,
        "dtype": "bfloat16" if config.dtype == torch.bfloat16 else "float32",
    }


def write_processors(folder: Path, config: RocketConfig, processor: RocketProcessor, tokenizer: str) -> None:
    """Write lerobot's two processor pipelines, with the steps in the order of lerobot's policies, and statistics."""
    policy_type = lerobot_type(config)
    inputs, outputs = features(config)
    mapping = normalization(config)

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
