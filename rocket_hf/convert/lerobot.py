"""lerobot's pi0, pi0.5 (and openpi's PyTorch weights in its folders) and SmolVLA to ours."""

import re
from pathlib import Path
from typing import Any

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_pi0 import Pi0Config
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.configuration_smolvla import SmolVLAConfig
from rocket_hf.modeling.flow_matching import MAX_PERIOD, MIN_PERIOD
from rocket_hf.modeling.processing_rocket import RocketProcessor

from .checkpoint import Checkpoint
from .lerobot_folder import LeRobotFolder
from .lerobot_names import EMBEDDING, EXPERT, SMOL, SMOL_EXPERT, TIED_HEAD, VLM, to_ours
from .write import FoundRocket

# The widths of one attention head that no tensor's shape tells.
SIGLIP_SO400M_HEAD, SMOL_HEAD, SMOL_VISION_HEAD = 72, 64, 64

# Settings of lerobot's that change what its actions mean, and the one value that means the same here.
PERIODS = {"min_period": MIN_PERIOD, "max_period": MAX_PERIOD}
PI_ONLY = PERIODS | {"use_relative_actions": False}
ONLY: dict[str, dict[str, Any]] = {
    "pi0": PI_ONLY,
    "pi05": PI_ONLY,
    "smolvla": PERIODS
    | {
        "adapt_to_pi_aloha": False,
        "use_delta_joint_actions_aloha": False,
        "add_image_special_tokens": False,
        "attention_mode": "cross_attn",
        "num_expert_layers": -1,
    },
}


def read(folder: Path, kind: str, tokenizer: str | None = None) -> FoundRocket:
    """A folder of a lerobot policy of type `kind`."""
    described = LeRobotFolder.read(folder, kind)
    for key, only in ONLY[kind].items():
        if described.config.get(key, only) != only:
            raise UserError(f"config.json sets {key}={described.config[key]}; only {only} is supported")
    checkpoint = Checkpoint(folder)
    checkpoint.add_weights()
    names = {name.removeprefix("model."): entry.shape for name, entry in checkpoint.entries.items()}
    shapes = Shapes(names)
    policy = smolvla(shapes, described.config) if kind == "smolvla" else pi(shapes, described.config, kind)
    config = RocketConfig(policy_config=policy, **described.robot())
    length = described.config.get("tokenizer_max_length", policy.max_prompt_length)
    processor = RocketProcessor.for_config(
        config, described.tokenizer(tokenizer), described.statistics, max_prompt_length=length
    )
    rules = to_ours(kind, EMBEDDING not in names and TIED_HEAD in names)
    return FoundRocket(checkpoint, config, rules, processor)


class Shapes:
    """The shapes of a checkpoint's tensors by lerobot's names, from which the sizes of the policy are read."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]):
        self.shapes = shapes

    def __getitem__(self, name: str) -> tuple[int, ...]:
        if name not in self.shapes:
            raise UserError(f"the checkpoint lacks the tensor {name}")
        return self.shapes[name]

    def depth(self, prefix: str) -> int:
        found = (re.fullmatch(rf"{re.escape(prefix)}\.layers\.(\d+)\..*", name) for name in self.shapes)
        return len({match[1] for match in found if match})

    def vision(self, prefix: str, head: int) -> dict[str, int]:
        patches, width = self[f"{prefix}.embeddings.position_embedding.weight"]
        patch = self[f"{prefix}.embeddings.patch_embedding.weight"][-1]
        return {
            "vision_width": width,
            "vision_heads": max(1, width // head),
            "vision_depth": self.depth(f"{prefix}.encoder"),
            "vision_mlp_width": self[f"{prefix}.encoder.layers.0.mlp.fc1.weight"][0],
            "patch_size": patch,
            "image_size": patch * round(patches**0.5),
        }

    def halves(self, language: str, expert: str, head: int) -> dict[str, int]:
        first = f"{language}.layers.0"
        return {
            "depth": self.depth(language),
            "head_dim": head,
            "heads": self[f"{first}.self_attn.q_proj.weight"][0] // head,
            "kv_heads": self[f"{first}.self_attn.k_proj.weight"][0] // head,
            "width": self[f"{first}.self_attn.q_proj.weight"][1],
            "mlp_width": self[f"{first}.mlp.up_proj.weight"][0],
            "expert_width": self["action_in_proj.weight"][0],
            "expert_mlp_width": self[f"{expert}.layers.0.mlp.up_proj.weight"][0],
            "max_action_dim": self["action_in_proj.weight"][1],
        }


def pi(shapes: Shapes, config: dict[str, Any], variant: str) -> Pi0Config:
    """Gemma has one key-value head, so its width is that of a head."""
    language = f"{VLM}.language_model"
    sizes = shapes.halves(language, f"{EXPERT}.model", shapes[f"{language}.layers.0.self_attn.k_proj.weight"][0])
    sizes |= shapes.vision(f"{VLM}.vision_tower.vision_model", SIGLIP_SO400M_HEAD)
    sizes["vocab_size"] = shapes[EMBEDDING if EMBEDDING in shapes.shapes else TIED_HEAD][0]
    sizes["denoising_steps"] = config.get("num_inference_steps", 10)
    if variant == "pi0":
        sizes["max_state_dim"] = shapes["state_proj.weight"][1]
    return Pi0Config(variant=variant, **sizes)


def smolvla(shapes: Shapes, config: dict[str, Any]) -> SmolVLAConfig:
    sizes = shapes.halves(f"{SMOL}.text_model", SMOL_EXPERT, SMOL_HEAD)
    sizes |= shapes.vision(f"{SMOL}.vision_model", SMOL_VISION_HEAD)
    joined = shapes[f"{SMOL}.connector.modality_projection.proj.weight"][1]
    sizes |= {
        "vocab_size": shapes[f"{SMOL}.text_model.embed_tokens.weight"][0],
        "pixel_shuffle": round((joined / sizes["vision_width"]) ** 0.5),
        "self_attention_every": config.get("self_attn_every_n_layers", 2),
        "max_state_dim": shapes["state_proj.weight"][1],
        "denoising_steps": config.get("num_steps", 10),
    }
    return SmolVLAConfig(**sizes)
