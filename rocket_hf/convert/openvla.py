"""OpenVLA, OpenVLA-OFT and the public ROCKET code's checkpoints of OpenVLA-OFT to ours.

The folder holds the vision-language model in safetensors, statistics in dataset_statistics.json or config.json and, for
OFT, an action head, a state projector and for ROCKET the alignment projectors as pickled tensors.
"""

import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rocket_hf.checkpoint_files import Checkpoint, read_json
from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_openvla import OpenVLAPolicyConfig
from rocket_hf.modeling.configuration_rocket import AlignmentConfig, RocketConfig
from rocket_hf.modeling.normalization import Statistics
from rocket_hf.modeling.processing_rocket import RocketProcessor

from .plan import Drop, Rename
from .timm_names import vit_rules
from .write import RocketSource

# Widths of one attention head in Llama-2, DINOv2 and SigLIP-So400m, which no tensor's shape tells.
LLAMA_HEAD, DINO_HEAD, SIGLIP_HEAD = 128, 64, 72
SPACES = ("\N{LOWER ONE EIGHTH BLOCK}", " ")  # SentencePiece's space, and a plain one
DINO, SIGLIP = r"vision_backbone\.featurizer", r"vision_backbone\.fused_featurizer"
HEAD, STATE, PROJECTORS = "action_head.", "proprio_projector.", "align_projectors."

# The robots of the public code by (action, state) dimensions: steps of a chunk, normalization, cameras.
ROBOTS = {
    (7, 8): (8, "quantile", ["image", "wrist_image"]),  # LIBERO
    (14, 14): (30, "min_max", ["image", "left_wrist_image", "right_wrist_image"]),  # ALOHA
    (7, 7): (5, "quantile", ["image"]),  # Bridge
}
# The teacher's layers of the public ROCKET code, in this package's numbers. The student's are in the file: there, too,
# layer i is the stream after block i, but -1 is the input of the last block.
ROCKET_TEACHERS = (3, 5, 7, 9, 11, 13, 15, 17, 19, 24)


def tower_rules(theirs: str, ours: str, depth: int) -> list[Rename | Drop]:
    tower = f"policy.vision_tower.{ours}"
    block, target = rf"{theirs}\.blocks\.(\d+)", rf"{tower}.blocks.\1"
    unused = "the last block, the norm and the pooling of the vision towers, which no feature comes from"
    return [
        Drop(rf"{theirs}\.(blocks\.{depth - 1}|norm|attn_pool)\..*", unused),
        Rename(rf"{theirs}\.cls_token", f"{tower}.prefix.weight", rows=True),
        Rename(rf"{theirs}\.reg_token", f"{tower}.prefix.weight", rows=True),
        *vit_rules(theirs, tower),
        Rename(rf"{block}\.ls1\.(?:scale_factor|gamma)", rf"{target}.attention_scale.weight"),
        Rename(rf"{block}\.ls2\.(?:scale_factor|gamma)", rf"{target}.mlp_scale.weight"),
    ]


def language_rules(speaks: bool) -> list[Rename | Drop]:
    head = r"language_model\.lm_head\.weight"
    return [
        *(Rename(rf"projector\.fc{n + 1}\.(.*)", rf"policy.projector.layers.{n}.\1") for n in range(3)),
        Rename(r"language_model\.model\.(embed_tokens|layers|norm)\.(.*)", r"policy.\1.\2"),
        Rename(head, "policy.lm_head.weight") if speaks else Drop(head, "OFT speaks no words"),
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


def sizes(checkpoint: Checkpoint, variant: str) -> dict[str, Any]:
    """The sizes of the policy, read off its tensors."""
    shape = checkpoint.shape
    dino, siglip = "vision_backbone.featurizer", "vision_backbone.fused_featurizer"
    vocabulary, width = shape("language_model.model.embed_tokens.weight")
    dino_width, siglip_width = (
        shape(f"{dino}.patch_embed.proj.weight")[0],
        shape(f"{siglip}.patch_embed.proj.weight")[0],
    )
    patch = shape(f"{dino}.patch_embed.proj.weight")[-1]
    found = {
        "variant": variant,
        "vocab_size": vocabulary,
        "width": width,
        "depth": count(checkpoint, r"language_model\.model\.layers\.(\d+)\..*"),
        "heads": max(1, width // LLAMA_HEAD),
        "kv_heads": max(1, shape("language_model.model.layers.0.self_attn.k_proj.weight")[0] // LLAMA_HEAD),
        "mlp_width": shape("language_model.model.layers.0.mlp.up_proj.weight")[0],
        "dino_depth": count(checkpoint, rf"{DINO}\.blocks\.(\d+)\..*"),
        "dino_width": dino_width,
        "dino_heads": max(1, dino_width // DINO_HEAD),
        "dino_mlp_width": shape(f"{dino}.blocks.0.mlp.fc1.weight")[0],
        "dino_registers": shape(f"{dino}.reg_token")[1],
        "siglip_depth": count(checkpoint, rf"{SIGLIP}\.blocks\.(\d+)\..*"),
        "siglip_width": siglip_width,
        "siglip_heads": max(1, siglip_width // SIGLIP_HEAD),
        "siglip_mlp_width": shape(f"{siglip}.blocks.0.mlp.fc1.weight")[0],
        "patch_size": patch,
        "image_size": patch * round(shape(f"{dino}.pos_embed")[1] ** 0.5),
    }
    if variant == "oft":
        found["action_head_width"] = shape(f"{HEAD}model.fc1.weight")[0]
        found["action_head_blocks"] = count(checkpoint, r"action_head\.model\.mlp_resnet_blocks\.(\d+)\..*")
    return found


def count(checkpoint: Checkpoint, pattern: str) -> int:
    return len({match[1] for name in checkpoint.entries if (match := re.fullmatch(pattern, name))})


def token_settings(config: dict[str, Any], vocabulary: int, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The vocabulary without its padding and the number of action bins, as config.json has them; the ids of the end and
    of the empty word, a lone space, as the tokenizer has them."""
    known = tokenizer.get_vocab()
    empty = next((known[space] for space in SPACES if space in known), None)
    if empty is None or tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no token for a space or none for the end")
    return {
        "base_vocab_size": vocabulary - config.get("pad_to_multiple_of", 64),
        "action_bins": config.get("n_action_bins", 256),
        "empty_token_id": empty,
        "end_token_id": tokenizer.eos_token_id,
    }


def choose_statistics(folder: Path, config: dict[str, Any], key: str | None) -> dict[str, Statistics]:
    """Of one data set: asked for when there are several."""
    path = folder / "dataset_statistics.json"
    known = read_json(path) if path.exists() else config.get("norm_stats", {})
    if not known:
        raise UserError("there are no statistics: neither dataset_statistics.json nor norm_stats in config.json")
    if key is None and len(known) > 1:
        raise UserError(
            f"there are statistics of {len(known)} data sets, choose one with --statistics: {', '.join(known)}"
        )
    key = key or next(iter(known))
    if key not in known:
        raise UserError(f"there are no statistics of {key!r}; there are: {', '.join(known)}")
    parts = {"action": "action", "proprio": "state"}
    return {ours: known[key][theirs] for theirs, ours in parts.items() if theirs in known[key]}


def has_weights(folder: Path) -> bool:
    return any(folder.glob("model*.safetensors*"))


def single_pickle(folder: Path, stem: str) -> Path:
    """The one file `STEM--N_checkpoint.pt`."""
    files = sorted(folder.glob(f"{stem}--*_checkpoint.pt"))
    if len(files) != 1:
        raise UserError(f"{folder} holds {len(files)} files {stem}--*_checkpoint.pt, one is needed")
    return files[0]


def read(
    folder: Path,
    family: str,
    tokenizer: str | None = None,
    statistics: str | None = None,
    base: Path | None = None,
) -> RocketSource:
    """A folder of `openvla`, `openvla-oft` or `rocket-openvla`. With `base`, the weights are those of that folder with
    the folder's own lora_adapter/ merged into them; else the folder's own, into which it has been merged already."""
    checkpoint, variant = Checkpoint(base or folder), "openvla" if family == "openvla" else "oft"
    if base is None and not has_weights(folder) and (folder / "lora_adapter").exists():
        raise UserError(f"{folder.name} holds a lora_adapter/ without the model: name the model with --base")
    checkpoint.add_weights()
    if base is not None:
        checkpoint.add_lora(folder / "lora_adapter")
    if variant == "oft":
        checkpoint.add_pickle(single_pickle(folder, "action_head"), HEAD)
        checkpoint.add_pickle(single_pickle(folder, "proprio_projector"), STATE)
    described = read_json(folder / "config.json")
    found = sizes(checkpoint, variant)
    loaded = AutoTokenizer.from_pretrained(tokenizer or folder)
    policy = OpenVLAPolicyConfig(**found, **token_settings(described, found["vocab_size"], loaded))
    chosen = choose_statistics(folder, described, statistics)
    rules = [
        *tower_rules(DINO, "dino", policy.dino_depth),
        *tower_rules(SIGLIP, "siglip", policy.siglip_depth),
        *language_rules(speaks=variant == "openvla"),
        *OFT_RULES,
    ]
    alignment = None
    if family == "rocket-openvla":
        alignment, more = read_projectors(folder, checkpoint, policy.depth)
        rules += more
    config = RocketConfig(policy_config=policy, alignment=alignment, **robot(checkpoint, variant, chosen))
    return RocketSource(checkpoint, config, rules, RocketProcessor.for_config(config, loaded, chosen))


def robot(checkpoint: Checkpoint, variant: str, statistics: dict[str, Statistics]) -> dict[str, Any]:
    """The robot's part of the configuration: dimensions from the heads, the rest by the public code's table."""
    if variant == "openvla":
        read = "state" in statistics  # the policy does not, but its data may have had one
        return {
            "cameras": ["image"],
            "chunk_size": 1,
            "action_dim": len(statistics["action"]["q01"]),
            "state_dim": len(statistics["state"]["q01"]) if read else 1,
            "state_normalization": "quantile" if read else "identity",
            "action_normalization": "quantile",
        }
    action = checkpoint.shape(f"{HEAD}model.fc2.weight")[0]
    state = checkpoint.shape(f"{STATE}fc1.weight")[1]
    if (action, state) not in ROBOTS:
        raise UserError(f"no public robot has {action} action and {state} state dimensions; known: {list(ROBOTS)}")
    chunk, mode, cameras = ROBOTS[action, state]
    return {
        "cameras": cameras,
        "chunk_size": chunk,
        "action_dim": action,
        "state_dim": state,
        "state_normalization": mode,
        "action_normalization": mode,
    }


def read_projectors(folder: Path, checkpoint: Checkpoint, depth: int) -> tuple[AlignmentConfig, list[Rename | Drop]]:
    """The alignment head. The public code stores a shared projector once for each pair: checked equal, kept once."""
    checkpoint.add_pickle(single_pickle(folder, "align_projectors"), PROJECTORS)
    pattern = rf"{re.escape(PROJECTORS)}(-?\d+)\.(\d+)\.(fc1|fc2|vlm_norm)\.(weight|bias)"
    matches = {name: match for name in checkpoint.entries if (match := re.fullmatch(pattern, name))}
    if members := sorted({match[2] for match in matches.values()} - {"0"}):
        raise UserError(f"align_projectors holds an ensemble (member {members[0]}), which has no counterpart here")
    layers = sorted({match[1] for match in matches.values()}, key=lambda layer: int(layer) % depth)
    for name, match in matches.items():
        first = f"{PROJECTORS}{layers[0]}.0.{match[3]}.{match[4]}"
        if not torch.equal(checkpoint.read(name), checkpoint.read(first)):
            raise UserError(f"{name} differs from {first}: only projectors that all layers share can be converted")
    hidden, target = (checkpoint.shape(f"{PROJECTORS}{layers[0]}.0.{layer}.weight")[0] for layer in ("fc1", "fc2"))
    alignment = AlignmentConfig(
        student_layers=[depth - 1 if layer == "-1" else int(layer) for layer in layers],
        teacher_layers=[*ROCKET_TEACHERS[: len(layers) - 1], ROCKET_TEACHERS[-1]],
        nesting="increasing" if len(layers) > 1 else "none",
        hidden_width=hidden,
        target_width=target,
    )
    head = rf"{re.escape(PROJECTORS + layers[0])}\.0"
    return alignment, [
        Rename(rf"{head}\.(fc1|fc2)\.(.*)", r"alignment_head.projectors.0.\1.\2"),
        Rename(rf"{head}\.vlm_norm\.(.*)", r"alignment_head.projectors.0.norm.\1"),
        Drop(pattern, "the shared projector again, equal in every number"),
    ]
