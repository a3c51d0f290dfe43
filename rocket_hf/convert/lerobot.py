"""Reader for lerobot checkpoints of pi0, pi0.5 (also openpi's PyTorch weights in lerobot folders) and SmolVLA."""

import re
from pathlib import Path
from typing import Any

from rocket_hf.checkpoint_files import Checkpoint, check_length, missing_tensor
from rocket_hf.errors import UserError
from rocket_hf.hub import REPO_ID
from rocket_hf.modeling.configuration_pi0 import Pi0Config
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.configuration_smolvla import SmolVLAConfig
from rocket_hf.modeling.flow_matching import MAX_PERIOD, MIN_PERIOD
from rocket_hf.modeling.processing_rocket import RocketProcessor

from .head_counts import SIGLIP_HEADS, SMOL_HEADS, HeadCounts, check_heads
from .lerobot_folder import LeRobotFolder
from .lerobot_names import EMBEDDING, EXPERT, SMOL, SMOL_EXPERT, TIED_HEAD, VLM, rules_from_lerobot
from .smolvlm_folder import SmolVLMSettings, read_smolvlm_settings
from .write import RocketSource

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


def read_lerobot(
    folder: Path,
    policy_type: str,
    tokenizer: str | None = None,
    heads: HeadCounts | None = None,
    vlm: str | None = None,
) -> RocketSource:
    """Read the folder of a lerobot policy.

    Args:
        folder: Folder of the policy.
        policy_type: `pi0`, `pi05` or `smolvla`.
        tokenizer: Folder or Hub id of the tokenizer; by default the one that the policy names.
        heads: Numbers of attention heads that the folder does not state.
        vlm: Folder or Hub id of SmolVLA's vision-language model; by default the one that the policy names.
    """
    heads = heads or HeadCounts()
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
        settings = read_smolvlm_settings(source.config, vlm)
        settings.check_widths(*shapes.smolvlm_widths(), vlm)
        policy = smolvla_config(shapes, source.config, heads, settings)
    else:
        policy = pi0_config(shapes, source.config, policy_type, heads)
    check_image_size(source.config, policy.image_size)
    config = RocketConfig(policy_config=policy, **source.robot_config())
    processor = RocketProcessor.for_config(
        config,
        source.load_tokenizer(tokenizer),
        source.statistics,
        max_prompt_length=source.config.get("tokenizer_max_length", policy.max_prompt_length),
        task_text=source.task_text,
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

    def matrix(self, name: str) -> tuple[int, int]:
        rows, columns = check_length(name, self[name], 2)
        return rows, columns

    def vision_width(self, prefix: str) -> int:
        return self.matrix(f"{prefix}.embeddings.position_embedding.weight")[1]

    def smolvlm_widths(self) -> tuple[int, int]:
        """Return the widths of SmolVLA's language model and vision tower."""
        query = f"{SMOL}.text_model.layers.0.self_attn.q_proj.weight"
        return self.matrix(query)[1], self.vision_width(f"{SMOL}.vision_model")

    def vision_sizes(self, prefix: str, heads: int) -> dict[str, int]:
        patches, width = self.matrix(f"{prefix}.embeddings.position_embedding.weight")
        patch_embedding = f"{prefix}.embeddings.patch_embedding.weight"
        patch = check_length(patch_embedding, self[patch_embedding], 4)[-1]
        check_heads("vision", heads, width)
        return {
            "vision_width": width,
            "vision_heads": heads,
            "vision_depth": self.depth(f"{prefix}.encoder"),
            "vision_mlp_width": self.matrix(f"{prefix}.encoder.layers.0.mlp.fc1.weight")[0],
            "patch_size": patch,
            "image_size": patch * round(patches**0.5),
        }

    def language_and_expert_sizes(self, language: str, expert: str, heads: int) -> dict[str, int]:
        first = f"{language}.layers.0"
        query_width, width = self.matrix(f"{first}.self_attn.q_proj.weight")
        key_width = self.matrix(f"{first}.self_attn.k_proj.weight")[0]
        head_dim = check_heads("language", heads, query_width, key_width)
        expert_width, max_action_dim = self.matrix("action_in_proj.weight")
        return {
            "depth": self.depth(language),
            "head_dim": head_dim,
            "heads": heads,
            "kv_heads": key_width // head_dim,
            "width": width,
            "mlp_width": self.matrix(f"{first}.mlp.up_proj.weight")[0],
            "expert_width": expert_width,
            "expert_mlp_width": self.matrix(f"{expert}.layers.0.mlp.up_proj.weight")[0],
            "max_action_dim": max_action_dim,
        }


def check_image_size(config: dict[str, Any], size: int) -> None:
    """Raise UserError if lerobot resizes images to another size than that of the vision tower's position embeddings."""
    for key in ("image_resolution", "resize_imgs_with_padding"):
        if config.get(key, [size, size]) != [size, size]:
            raise UserError(
                f"config.json sets {key}={config[key]}, but the position embeddings of the vision tower are those of "
                f"images of {size} x {size}: only policies of this image size can be converted"
            )


def pi0_config(shapes: LeRobotShapes, config: dict[str, Any], variant: str, heads: HeadCounts) -> Pi0Config:
    language, tower = f"{VLM}.language_model", f"{VLM}.vision_tower.vision_model"
    query_width, key_width = (
        shapes.matrix(f"{language}.layers.0.self_attn.{part}_proj.weight")[0] for part in ("q", "k")
    )
    # All of lerobot's variants of Gemma have a single key-value head.
    sizes = shapes.language_and_expert_sizes(language, f"{EXPERT}.model", max(1, query_width // max(1, key_width)))
    vision_width = shapes.vision_width(tower)
    sizes |= shapes.vision_sizes(tower, heads.of("vision", vision_width, SIGLIP_HEADS))
    sizes["vocab_size"] = shapes.matrix(EMBEDDING if EMBEDDING in shapes.by_name else TIED_HEAD)[0]
    sizes["denoising_steps"] = config.get("num_inference_steps", 10)
    if variant == "pi0":
        sizes["max_state_dim"] = shapes.matrix("state_proj.weight")[1]
    return Pi0Config(variant=variant, **sizes)


def smolvla_config(
    shapes: LeRobotShapes, config: dict[str, Any], heads: HeadCounts, settings: SmolVLMSettings
) -> SmolVLAConfig:
    language, tower = f"{SMOL}.text_model", f"{SMOL}.vision_model"
    width, vision_width = shapes.smolvlm_widths()
    sizes = shapes.language_and_expert_sizes(
        language, SMOL_EXPERT, heads.of("language", width, SMOL_HEADS, settings.language_heads(width))
    )
    sizes |= shapes.vision_sizes(
        tower, heads.of("vision", vision_width, SIGLIP_HEADS, settings.vision_heads(vision_width))
    )
    connector_width = shapes.matrix(f"{SMOL}.connector.modality_projection.proj.weight")[1]  # of a square of patches
    name = config.get("vlm_model_name")
    return SmolVLAConfig(
        **sizes,
        vocab_size=shapes.matrix(f"{language}.embed_tokens.weight")[0],
        rms_norm_eps=settings.norm_eps(width),
        pixel_shuffle=round((connector_width / vision_width) ** 0.5),
        self_attention_every=config.get("self_attn_every_n_layers", 2),
        max_state_dim=shapes.matrix("state_proj.weight")[1],
        denoising_steps=config.get("num_steps", 10),
        vlm_model_name=name if isinstance(name, str) and REPO_ID.fullmatch(name) else None,
    )
