"""Reader for lerobot checkpoints of pi0, pi0.5 (also openpi's PyTorch weights in lerobot folders) and SmolVLA."""

import re
from pathlib import Path
from typing import Any

from rocket_hf.checkpoint_files import Checkpoint, missing_tensor
from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_pi0 import Pi0Config
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.configuration_smolvla import SmolVLAConfig
from rocket_hf.modeling.flow_matching import MAX_PERIOD, MIN_PERIOD
from rocket_hf.modeling.processing_rocket import RocketProcessor

from .lerobot_folder import LeRobotFolder
from .lerobot_names import EMBEDDING, EXPERT, SMOL, SMOL_EXPERT, TIED_HEAD, VLM, rules_from_lerobot
from .write import RocketSource

# Dimensions of one attention head, which cannot be inferred from the shapes of the tensors.
SIGLIP_SO400M_HEAD_DIM, SMOL_HEAD_DIM, SMOL_VISION_HEAD_DIM = 72, 64, 64

# lerobot settings that change the meaning of the actions, with the only value that this package implements.
PERIODS = {"min_period": MIN_PERIOD, "max_period": MAX_PERIOD}
PI_SETTINGS = PERIODS | {"use_relative_actions": False}
SUPPORTED_SETTINGS: dict[str, dict[str, Any]] = {
    "pi0": PI_SETTINGS,
    "pi05": PI_SETTINGS,
    "smolvla": PERIODS
    | {
        "adapt_to_pi_aloha": False,
        "use_delta_joint_actions_aloha": False,
        "add_image_special_tokens": False,
        "attention_mode": "cross_attn",
        "num_expert_layers": -1,
    },
}


def read_lerobot(folder: Path, policy_type: str, tokenizer: str | None = None) -> RocketSource:
    """Read the folder of a lerobot policy. `policy_type` is `pi0`, `pi05` or `smolvla`."""
    source = LeRobotFolder.read(folder, policy_type)
    for key, supported in SUPPORTED_SETTINGS[policy_type].items():
        if source.config.get(key, supported) != supported:
            raise UserError(
                f"config.json sets {key}={source.config[key]}; only {supported} is supported, because other values "
                "change the actions"
            )
    checkpoint = Checkpoint(folder)
    checkpoint.add_weights()
    shapes = LeRobotShapes({name.removeprefix("model."): entry.shape for name, entry in checkpoint.entries.items()})
    policy: Pi0Config | SmolVLAConfig
    if policy_type == "smolvla":
        policy = smolvla_config(shapes, source.config)
    else:
        policy = pi0_config(shapes, source.config, policy_type)
    config = RocketConfig(policy_config=policy, **source.robot_config())
    prompt_length = source.config.get("tokenizer_max_length", policy.max_prompt_length)
    processor = RocketProcessor.for_config(
        config, source.load_tokenizer(tokenizer), source.statistics, max_prompt_length=prompt_length
    )
    rules = rules_from_lerobot(policy_type, EMBEDDING not in shapes.by_name and TIED_HEAD in shapes.by_name)
    return RocketSource(checkpoint, config, rules, processor)


class LeRobotShapes:
    """Tensor shapes of a lerobot checkpoint by name, from which the sizes of the policy are inferred."""

    def __init__(self, by_name: dict[str, tuple[int, ...]]):
        self.by_name = by_name

    def __getitem__(self, name: str) -> tuple[int, ...]:
        if name not in self.by_name:
            raise missing_tensor(name)
        return self.by_name[name]

    def depth(self, prefix: str) -> int:
        matches = (re.fullmatch(rf"{re.escape(prefix)}\.layers\.(\d+)\..*", name) for name in self.by_name)
        return len({match[1] for match in matches if match})

    def vision_sizes(self, prefix: str, head_dim: int) -> dict[str, int]:
        patches, width = self[f"{prefix}.embeddings.position_embedding.weight"]
        patch = self[f"{prefix}.embeddings.patch_embedding.weight"][-1]
        return {
            "vision_width": width,
            "vision_heads": max(1, width // head_dim),
            "vision_depth": self.depth(f"{prefix}.encoder"),
            "vision_mlp_width": self[f"{prefix}.encoder.layers.0.mlp.fc1.weight"][0],
            "patch_size": patch,
            "image_size": patch * round(patches**0.5),
        }

    def language_and_expert_sizes(self, language: str, expert: str, head_dim: int) -> dict[str, int]:
        first = f"{language}.layers.0"
        return {
            "depth": self.depth(language),
            "head_dim": head_dim,
            "heads": self[f"{first}.self_attn.q_proj.weight"][0] // head_dim,
            "kv_heads": self[f"{first}.self_attn.k_proj.weight"][0] // head_dim,
            "width": self[f"{first}.self_attn.q_proj.weight"][1],
            "mlp_width": self[f"{first}.mlp.up_proj.weight"][0],
            "expert_width": self["action_in_proj.weight"][0],
            "expert_mlp_width": self[f"{expert}.layers.0.mlp.up_proj.weight"][0],
            "max_action_dim": self["action_in_proj.weight"][1],
        }


def pi0_config(shapes: LeRobotShapes, config: dict[str, Any], variant: str) -> Pi0Config:
    language = f"{VLM}.language_model"
    head_dim = shapes[f"{language}.layers.0.self_attn.k_proj.weight"][0]  # Gemma has a single key-value head
    sizes = shapes.language_and_expert_sizes(language, f"{EXPERT}.model", head_dim)
    sizes |= shapes.vision_sizes(f"{VLM}.vision_tower.vision_model", SIGLIP_SO400M_HEAD_DIM)
    sizes["vocab_size"] = shapes[EMBEDDING if EMBEDDING in shapes.by_name else TIED_HEAD][0]
    sizes["denoising_steps"] = config.get("num_inference_steps", 10)
    if variant == "pi0":
        sizes["max_state_dim"] = shapes["state_proj.weight"][1]
    return Pi0Config(variant=variant, **sizes)


def smolvla_config(shapes: LeRobotShapes, config: dict[str, Any]) -> SmolVLAConfig:
    sizes = shapes.language_and_expert_sizes(f"{SMOL}.text_model", SMOL_EXPERT, SMOL_HEAD_DIM)
    sizes |= shapes.vision_sizes(f"{SMOL}.vision_model", SMOL_VISION_HEAD_DIM)
    connector_width = shapes[f"{SMOL}.connector.modality_projection.proj.weight"][1]  # of a square of patches
    sizes |= {
        "vocab_size": shapes[f"{SMOL}.text_model.embed_tokens.weight"][0],
        "pixel_shuffle": round((connector_width / sizes["vision_width"]) ** 0.5),
        "self_attention_every": config.get("self_attn_every_n_layers", 2),
        "max_state_dim": shapes["state_proj.weight"][1],
        "denoising_steps": config.get("num_steps", 10),
    }
    return SmolVLAConfig(**sizes)
