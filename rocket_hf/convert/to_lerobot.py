"""Our pi0 and pi0.5 back to a folder that lerobot's own policy class loads, strictly, and acts the same with.

lerobot's classes hold three weights that no action depends on (see lerobot_pi0.py); they are written as zeros.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..modeling.configuration_rocket import RocketConfig
from ..modeling.modeling_rocket import RocketForActionPrediction
from ..modeling.processing_rocket import RocketProcessor
from ..publish import staged
from .lerobot_folder import IMAGES, MODES, NORMALIZER
from .plan import Rename

CORE = "model.paligemma_with_expert"
VLM = f"{CORE}.paligemma.model"
EXPERT = f"{CORE}.gemma_expert"
VISION = f"{VLM}.vision_tower.vision_model"
TOKENIZER = "google/paligemma-3b-pt-224"

LAYER = r"policy\.layers\.(\d+)"
RULES = [
    *(
        rule
        for half, tower in (("language", f"{VLM}.language_model"), ("expert", f"{EXPERT}.model"))
        for rule in (
            Rename(rf"{LAYER}\.{half}\.attention\.(.*)", rf"{tower}.layers.\1.self_attn.\2"),
            Rename(rf"{LAYER}\.{half}\.mlp\.(.*)", rf"{tower}.layers.\1.mlp.\2"),
            Rename(
                rf"{LAYER}\.{half}\.attention_norm\.modulation\.(.*)", rf"{tower}.layers.\1.input_layernorm.dense.\2"
            ),
            Rename(rf"{LAYER}\.{half}\.attention_norm\.weight", rf"{tower}.layers.\1.input_layernorm.weight"),
            Rename(
                rf"{LAYER}\.{half}\.mlp_norm\.modulation\.(.*)", rf"{tower}.layers.\1.post_attention_layernorm.dense.\2"
            ),
            Rename(rf"{LAYER}\.{half}\.mlp_norm\.weight", rf"{tower}.layers.\1.post_attention_layernorm.weight"),
        )
    ),
    Rename(r"policy\.vision_tower\.(patch_embedding|position_embedding)\.(.*)", rf"{VISION}.embeddings.\1.\2"),
    Rename(r"policy\.vision_tower\.layers\.(.*)", rf"{VISION}.encoder.layers.\1"),
    Rename(r"policy\.vision_tower\.norm\.(.*)", rf"{VISION}.post_layernorm.\1"),
    Rename(r"policy\.image_projection\.(.*)", rf"{VLM}.multi_modal_projector.linear.\1"),
    Rename(r"policy\.embed_tokens\.weight", f"{VLM}.language_model.embed_tokens.weight"),
    Rename(r"policy\.expert_norm\.modulation\.(.*)", rf"{EXPERT}.model.norm.dense.\1"),
    Rename(r"policy\.expert_norm\.weight", f"{EXPERT}.model.norm.weight"),
    Rename(r"policy\.state_projection\.(.*)", r"model.state_proj.\1"),
    Rename(r"policy\.action_(in|out)\.(.*)", r"model.action_\1_proj.\2"),
]
TIME = {"pi0": "action_time_mlp", "pi05": "time_mlp"}


def to_lerobot(model: RocketForActionPrediction, processor: RocketProcessor, folder: Path, tokenizer: str) -> Path:
    """Writes the folder, whole or not at all. `tokenizer` is the Hub id or folder from which lerobot will load it."""
    config = model.config
    if config.policy_config.model_type != "rocket_pi0":
        raise ValueError(f"only pi0 and pi0.5 can be written for lerobot, not {config.policy_config.model_type}")
    with staged(folder) as staging:
        save_file(lerobot_weights(model), staging / "model.safetensors", metadata={"format": "pt"})
        write_json(staging / "config.json", lerobot_config(config, processor))
        write_processors(staging, config, processor, tokenizer)
    return folder


def lerobot_weights(model: RocketForActionPrediction) -> dict[str, Tensor]:
    policy = model.config.policy_config
    weights = {}
    for name, weight in model.for_inference().state_dict().items():
        weights[lerobot_name(name, policy.variant)] = weight.contiguous()
    kind = {"dtype": weight.dtype}
    weights[f"{VLM}.language_model.norm.weight"] = torch.zeros(policy.width, **kind)
    weights[f"{EXPERT}.lm_head.weight"] = torch.zeros(policy.vocab_size, policy.expert_width, **kind)
    weights[f"{CORE}.paligemma.lm_head.weight"] = weights[f"{VLM}.language_model.embed_tokens.weight"].clone()
    return weights


def lerobot_name(name: str, variant: str) -> str:
    for rule in (*RULES, Rename(r"policy\.time_mlp_(in|out)\.(.*)", rf"model.{TIME[variant]}_\1.\2")):
        if re.fullmatch(rule.source, name):
            return re.sub(rule.source, rule.target, name)
    raise ValueError(f"lerobot's policy has no place for {name}")


def features(config: RocketConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """lerobot's input and output features."""
    side = config.policy_config.image_size
    inputs = {f"{IMAGES}{name}": {"type": "VISUAL", "shape": [3, side, side]} for name in config.cameras}
    inputs["observation.state"] = {"type": "STATE", "shape": [config.state_dim]}
    return inputs, {"action": {"type": "ACTION", "shape": [config.action_dim]}}


def normalization(config: RocketConfig) -> dict[str, str]:
    theirs = {ours: name for name, ours in MODES.items()}
    modes = {"STATE": config.state_normalization, "ACTION": config.action_normalization}
    return {"VISUAL": "IDENTITY"} | {part: theirs[mode] for part, mode in modes.items()}


def lerobot_config(config: RocketConfig, processor: RocketProcessor) -> dict[str, Any]:
    policy = config.policy_config
    inputs, outputs = features(config)
    written = {
        "type": policy.variant,
        "input_features": inputs,
        "output_features": outputs,
        "normalization_mapping": normalization(config),
        "chunk_size": config.chunk_size,
        "n_action_steps": config.chunk_size,
        "max_action_dim": policy.max_action_dim,
        "max_state_dim": policy.max_state_dim,
        "num_inference_steps": policy.denoising_steps,
        "image_resolution": [policy.image_size, policy.image_size],
        "tokenizer_max_length": processor.max_prompt_length,
        "dtype": "bfloat16" if config.dtype == torch.bfloat16 else "float32",
    }
    return written


def write_processors(folder: Path, config: RocketConfig, processor: RocketProcessor, tokenizer: str) -> None:
    """lerobot's two pipelines with their statistics, the steps in the order of its own pi0 and pi0.5."""
    inputs, outputs = features(config)
    mapping, pi05 = normalization(config), config.policy_config.variant == "pi05"

    def normalizer(name: str, covered: dict[str, Any]) -> dict[str, Any]:
        return {"registry_name": name, "config": {"eps": 1e-8, "features": covered, "norm_map": mapping}}

    normalize = normalizer(NORMALIZER, inputs | outputs)
    prompt = {
        "registry_name": "pi05_prepare_state_tokenizer_processor_step" if pi05 else "pi0_new_line_processor",
        "config": {},
    }
    tokenize = {
        "registry_name": "tokenizer_processor",
        "config": {
            "tokenizer_name": tokenizer,
            "max_length": processor.max_prompt_length,
            "padding_side": "right",
            "padding": "max_length",
        },
    }
    first = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
    ]
    to_device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
    middle = [normalize, prompt, tokenize] if pi05 else [prompt, tokenize]
    before = [*first, *middle, to_device, *([] if pi05 else [normalize])]
    after = [normalizer("unnormalizer_processor", outputs), to_device]
    statistics = lerobot_statistics(processor)
    for name, steps in (("policy_preprocessor", before), ("policy_postprocessor", after)):
        for number, step in enumerate(steps):
            if "normalizer" in step["registry_name"]:
                step["state_file"] = f"{name}_step_{number}_{step['registry_name']}.safetensors"
                save_file(statistics, folder / step["state_file"])
        write_json(folder / f"{name}.json", {"name": name, "steps": steps})


def lerobot_statistics(processor: RocketProcessor) -> dict[str, Tensor]:
    """Refuses a per-dimension mask, which lerobot cannot express."""
    tensors = {}
    for part, feature in (("state", "observation.state"), ("action", "action")):
        for key, values in processor.statistics.get(part, {}).items():
            if key == "mask" and not all(values):
                raise ValueError(f"the {part} leaves single dimensions unnormalised, which lerobot cannot express")
            if key != "mask":
                tensors[f"{feature}.{key}"] = torch.tensor(values, dtype=torch.float32)
    return tensors


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
