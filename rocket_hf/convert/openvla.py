"""Reader for checkpoints of OpenVLA, OpenVLA-OFT and the public ROCKET code (an OpenVLA-OFT with alignment projectors).

The folder contains the vision-language model in safetensors and the statistics in dataset_statistics.json or
config.json. OFT adds an action head and a state projector, and ROCKET the alignment projectors, as pickled tensors.
"""

import re
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rocket_hf.checkpoint_files import Checkpoint, json_value, read_json_object
from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_openvla import OpenVLAPolicyConfig
from rocket_hf.modeling.configuration_rocket import AlignmentConfig, RocketConfig
from rocket_hf.modeling.normalization import Statistics
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.tokenizer import load_tokenizer

from .head_counts import (
    LLAMA_DEFAULTS,
    LLAMA_HEADS,
    SIGLIP_HEADS,
    VIT_HEADS,
    Configuration,
    HeadCounts,
    check_heads,
    stated_heads,
    stated_number,
)
from .openvla_statistics import choose_statistics
from .plan import Drop, Rename
from .timm_names import vit_rules
from .write import RocketSource

SPACES = ("\N{LOWER ONE EIGHTH BLOCK}", " ")  # SentencePiece's space and the ASCII space
DINO, SIGLIP = r"vision_backbone\.featurizer", r"vision_backbone\.fused_featurizer"
HEAD, STATE, PROJECTORS = "action_head.", "proprio_projector.", "align_projectors."

# Robots of the public code: (action, state) dimensions -> chunk size, normalization, cameras.
ROBOTS = {
    (7, 8): (8, "quantile", ["image", "wrist_image"]),  # LIBERO
    (14, 14): (30, "min_max", ["image", "left_wrist_image", "right_wrist_image"]),  # ALOHA
    (7, 7): (5, "quantile", ["image"]),  # Bridge
}
# Teacher layers of the public ROCKET code in this package's numbering. The student layers are stored in the checkpoint:
# there too, layer i is the residual stream after block i, except that -1 is the input of the last block.
ROCKET_TEACHER_LAYERS = (3, 5, 7, 9, 11, 13, 15, 17, 19, 24)


def tower_rules(source: str, tower: str, depth: int) -> list[Rename | Drop]:
    target = f"policy.vision_tower.{tower}"
    source_block, target_block = rf"{source}\.blocks\.(\d+)", rf"{target}.blocks.\1"
    unused = "the last block, the norm and the pooling of the vision towers, which do not affect the features"
    return [
        Drop(rf"{source}\.(blocks\.{depth - 1}|norm|attn_pool)\..*", unused),
        Rename(rf"{source}\.cls_token", f"{target}.prefix.weight", stack_rows=True),
        Rename(rf"{source}\.reg_token", f"{target}.prefix.weight", stack_rows=True),
        *vit_rules(source, target),
        Rename(rf"{source_block}\.ls1\.(?:scale_factor|gamma)", rf"{target_block}.attention_scale.weight"),
        Rename(rf"{source_block}\.ls2\.(?:scale_factor|gamma)", rf"{target_block}.mlp_scale.weight"),
    ]


def language_rules(has_lm_head: bool) -> list[Rename | Drop]:
    head = r"language_model\.lm_head\.weight"
    unused = "the text head: OFT predicts actions with its action head"
    return [
        *(Rename(rf"projector\.fc{n + 1}\.(.*)", rf"policy.projector.layers.{n}.\1") for n in range(3)),
        Rename(r"language_model\.model\.(embed_tokens|layers|norm)\.(.*)", r"policy.\1.\2"),
        Rename(head, "policy.lm_head.weight") if has_lm_head else Drop(head, unused),
    ]


OFT_RULES: list[Rename | Drop] = [
    *(Rename(rf"proprio_projector\.fc{n + 1}\.(.*)", rf"policy.state_projector.layers.{n}.\1") for n in range(2)),
    Rename(r"action_head\.model\.layer_norm1\.(.*)", r"policy.action_head.norm_in.\1"),
    Rename(r"action_head\.model\.fc1\.(.*)", r"policy.action_head.fc_in.\1"),
    Rename(r"action_head\.model\.mlp_resnet_blocks\.(\d+)\.ffn\.0\.(.*)", r"policy.action_head.blocks.\1.norm.\2"),
    Rename(r"action_head\.model\.mlp_resnet_blocks\.(\d+)\.ffn\.1\.(.*)", r"policy.action_head.blocks.\1.linear.\2"),
    Rename(r"action_head\.model\.layer_norm2\.(.*)", r"policy.action_head.norm_out.\1"),
    Rename(r"action_head\.model\.fc2\.(.*)", r"policy.action_head.fc_out.\1"),
]


def infer_openvla_sizes(checkpoint: Checkpoint, variant: str, heads: HeadCounts, text: Configuration) -> dict[str, Any]:
    """Infer the sizes of the policy from the shapes of its tensors, its head counts and its `text_config`."""
    shape = checkpoint.shape
    dino, siglip = "vision_backbone.featurizer", "vision_backbone.fused_featurizer"
    vocabulary, width = shape("language_model.model.embed_tokens.weight", 2)
    dino_width, _, _, patch = shape(f"{dino}.patch_embed.proj.weight", 4)
    siglip_width = shape(f"{siglip}.patch_embed.proj.weight", 4)[0]
    sizes = {
        "variant": variant,
        "vocab_size": vocabulary,
        "width": width,
        "depth": count_layers(checkpoint, r"language_model\.model\.layers\.(\d+)\..*"),
        "mlp_width": shape("language_model.model.layers.0.mlp.up_proj.weight", 2)[0],
        "dino_depth": count_layers(checkpoint, rf"{DINO}\.blocks\.(\d+)\..*"),
        "dino_width": dino_width,
        "dino_heads": heads.of_tower("dino", dino_width, VIT_HEADS),
        "dino_mlp_width": shape(f"{dino}.blocks.0.mlp.fc1.weight", 2)[0],
        "dino_registers": shape(f"{dino}.reg_token", 3)[1],
        "siglip_depth": count_layers(checkpoint, rf"{SIGLIP}\.blocks\.(\d+)\..*"),
        "siglip_width": siglip_width,
        "siglip_heads": heads.of_tower("siglip", siglip_width, SIGLIP_HEADS),
        "siglip_mlp_width": shape(f"{siglip}.blocks.0.mlp.fc1.weight", 2)[0],
        "patch_size": patch,
        "image_size": patch * round(shape(f"{dino}.pos_embed", 3)[1] ** 0.5),
    }
    sizes |= language_settings(checkpoint, width, heads, text)
    if variant == "oft":
        sizes["action_head_width"] = shape(f"{HEAD}model.fc1.weight", 2)[0]
        sizes["action_head_blocks"] = count_layers(checkpoint, r"action_head\.model\.mlp_resnet_blocks\.(\d+)\..*")
    return sizes


def language_settings(checkpoint: Checkpoint, width: int, heads: HeadCounts, text: Configuration) -> dict[str, Any]:
    """Return the Llama model's settings that do not follow from its tensors. `text` is the source's `text_config`."""
    if text.get("rope_scaling"):
        raise UserError(f"config.json sets rope_scaling={text['rope_scaling']} in text_config, which is not supported")
    count = heads.of("language", width, LLAMA_HEADS, stated_heads(text, width, LLAMA_DEFAULTS) if text else None)
    key_width = checkpoint.shape("language_model.model.layers.0.self_attn.k_proj.weight", 2)[0]
    head_dim = check_heads("language", count, width, key_width)
    return {
        "heads": count,
        "kv_heads": key_width // head_dim,
        "rms_norm_eps": stated_number(text, "rms_norm_eps", LLAMA_DEFAULTS["rms_norm_eps"]),
        "rope_theta": stated_number(text, "rope_theta", 10_000.0),
    }


def count_layers(checkpoint: Checkpoint, pattern: str) -> int:
    return len({match[1] for name in checkpoint.entries if (match := re.fullmatch(pattern, name))})


def token_settings(config: dict[str, Any], vocabulary: int, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the unpadded vocabulary size and the number of action bins (from config.json), and the ids of the empty
    token (a single space) and of the end token (from the tokenizer)."""
    token_ids = tokenizer.get_vocab()
    empty = next((token_ids[space] for space in SPACES if space in token_ids), None)
    if empty is None or tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no space token or no end token: pass OpenVLA's tokenizer with --tokenizer")
    return {
        "base_vocab_size": vocabulary - integer_setting(config, "pad_to_multiple_of", 64),
        "action_bins": integer_setting(config, "n_action_bins", 256),
        "empty_token_id": empty,
        "end_token_id": tokenizer.eos_token_id,
    }


def integer_setting(config: dict[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"config.json sets {key}={value!r}, expected an integer: download it again")
    return value


def has_weights(folder: Path) -> bool:
    return any(folder.glob("model*.safetensors*"))


def single_pickle(folder: Path, stem: str) -> Path:
    """Return the path of the only file `STEM--N_checkpoint.pt`."""
    files = sorted(folder.glob(f"{stem}--*_checkpoint.pt"))
    if len(files) != 1:
        raise UserError(f"{folder} contains {len(files)} files {stem}--*_checkpoint.pt, expected exactly 1")
    return files[0]


def read_openvla(
    folder: Path,
    family: str,
    tokenizer: str | None = None,
    statistics: str | None = None,
    base: Path | None = None,
    heads: HeadCounts | None = None,
) -> RocketSource:
    """Read a folder of the family `openvla`, `openvla-oft` or `rocket-openvla`.

    With `base`, the weights are those of the folder `base` with the lora_adapter/ of `folder` merged into them.
    Otherwise they are the folder's own, into which the adapter has already been merged.
    """
    variant = "openvla" if family == "openvla" else "oft"
    checkpoint = open_checkpoint(folder, variant, base)
    path = folder / "config.json"
    source_config = read_json_object(path)
    text = json_value(source_config, "text_config", path, dict) if "text_config" in source_config else {}
    sizes = infer_openvla_sizes(checkpoint, variant, heads or HeadCounts(), text)
    # The public checkpoints name their own code for transformers, which this package has no use for.
    loaded_tokenizer = load_tokenizer(tokenizer or folder, ignore_code=True)
    policy = OpenVLAPolicyConfig(**sizes, **token_settings(source_config, sizes["vocab_size"], loaded_tokenizer))
    dataset_statistics = choose_statistics(folder, source_config, statistics)
    rules = [
        *tower_rules(DINO, "dino", policy.dino_depth),
        *tower_rules(SIGLIP, "siglip", policy.siglip_depth),
        *language_rules(has_lm_head=variant == "openvla"),
        *OFT_RULES,
    ]
    alignment = None
    if family == "rocket-openvla":
        alignment, projector_rules = read_projectors(folder, checkpoint, policy.depth)
        rules += projector_rules
    robot = robot_config(checkpoint, variant, dataset_statistics)
    config = RocketConfig(policy_config=policy, alignment=alignment, **robot)
    processor = RocketProcessor.for_config(config, loaded_tokenizer, dataset_statistics)
    return RocketSource(checkpoint, config, rules, processor)


def open_checkpoint(folder: Path, variant: str, base: Path | None) -> Checkpoint:
    checkpoint = Checkpoint(base or folder)
    if base is None and not has_weights(folder) and (folder / "lora_adapter").exists():
        raise UserError(f"{folder} contains a lora_adapter/ but no model: pass the adapter's base model with --base")
    checkpoint.add_weights()
    if base is not None:
        checkpoint.add_lora(folder / "lora_adapter")
    if variant == "oft":
        checkpoint.add_pickle(single_pickle(folder, "action_head"), HEAD)
        checkpoint.add_pickle(single_pickle(folder, "proprio_projector"), STATE)
    return checkpoint


def robot_config(checkpoint: Checkpoint, variant: str, statistics: dict[str, Statistics]) -> dict[str, Any]:
    """Return the arguments of RocketConfig that describe the robot.

    OpenVLA's dimensions come from the statistics; OFT's come from the shapes of the heads, and the other settings from
    the public code's table.
    """
    if variant == "openvla":
        has_state = "state" in statistics  # OpenVLA does not read the state, but its dataset may have one
        return {
            "cameras": ["image"],
            "chunk_size": 1,
            "action_dim": len(quantiles(statistics, "action")),
            "state_dim": len(quantiles(statistics, "state")) if has_state else 1,
            "state_normalization": "quantile" if has_state else "identity",
            "action_normalization": "quantile",
            "clip_normalized": True,
        }
    action_dim = checkpoint.shape(f"{HEAD}model.fc2.weight", 2)[0]
    state_dim = checkpoint.shape(f"{STATE}fc1.weight", 2)[1]
    if (action_dim, state_dim) not in ROBOTS:
        raise UserError(
            f"The checkpoint has {action_dim} action and {state_dim} state dimensions, which no robot of the public "
            f"code has. Supported (action, state) dimensions: {', '.join(map(str, ROBOTS))}"
        )
    chunk_size, mode, cameras = ROBOTS[action_dim, state_dim]
    return {
        "cameras": cameras,
        "chunk_size": chunk_size,
        "action_dim": action_dim,
        "state_dim": state_dim,
        "state_normalization": mode,
        "action_normalization": mode,
        "clip_normalized": True,
    }


def quantiles(statistics: dict[str, Statistics], part: str) -> list[Any]:
    if not statistics[part].get("q01"):
        raise UserError(f"the statistics of the {part} have no values of 'q01': choose others with --statistics")
    return list(statistics[part]["q01"])


def read_projectors(folder: Path, checkpoint: Checkpoint, depth: int) -> tuple[AlignmentConfig, list[Rename | Drop]]:
    """Return the configuration and the rules of the alignment head.

    The public code stores one copy of the shared projector per layer pair. They must be equal; one is converted.
    """
    checkpoint.add_pickle(single_pickle(folder, "align_projectors"), PROJECTORS)
    pattern = rf"{re.escape(PROJECTORS)}(-?\d+)\.(\d+)\.(fc1|fc2|vlm_norm)\.(weight|bias)"
    matches = {name: match for name in checkpoint.entries if (match := re.fullmatch(pattern, name))}
    if members := sorted({match[2] for match in matches.values()} - {"0"}):
        raise UserError(
            f"align_projectors contains an ensemble (member {members[0]}), which is not supported: convert the policy "
            "without its alignment head as the family openvla-oft"
        )
    layers = sorted({match[1] for match in matches.values()}, key=lambda layer: int(layer) % depth)
    for name, match in matches.items():
        first = f"{PROJECTORS}{layers[0]}.0.{match[3]}.{match[4]}"
        if not torch.equal(checkpoint.read(name), checkpoint.read(first)):
            raise UserError(
                f"{name} differs from {first}: only a projector that all layers share can be converted. Convert the "
                "policy without its alignment head as the family openvla-oft"
            )
    hidden, target = (checkpoint.shape(f"{PROJECTORS}{layers[0]}.0.{layer}.weight", 2)[0] for layer in ("fc1", "fc2"))
    alignment = AlignmentConfig(
        student_layers=[depth - 1 if layer == "-1" else int(layer) for layer in layers],
        teacher_layers=[*ROCKET_TEACHER_LAYERS[: len(layers) - 1], ROCKET_TEACHER_LAYERS[-1]],
        nesting="increasing" if len(layers) > 1 else "none",
        hidden_width=hidden,
        target_width=target,
    )
    head = rf"{re.escape(PROJECTORS + layers[0])}\.0"
    return alignment, [
        Rename(rf"{head}\.(fc1|fc2)\.(.*)", r"alignment_head.projectors.0.\1.\2"),
        Rename(rf"{head}\.vlm_norm\.(.*)", r"alignment_head.projectors.0.norm.\1"),
        Drop(pattern, "further copies of the shared projector"),
    ]
