"""Reader for the public ROCKET-2 checkpoints. Sizes are inferred from the tensors; config.json is not read."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rocket_hf.checkpoint_files import Checkpoint
from rocket_hf.export.policy_folder import write_rocket2_files
from rocket_hf.modeling.configuration_rocket2 import AUXILIARY_HEADS, Rocket2Config
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.rocket2_temporal import BIAS_CURVES

from .head_counts import VIT_HEADS, HeadCounts
from .plan import Drop, Rename
from .timm_names import vit_rules
from .write import SourcePolicy

RGB, MASK, SPATIAL, TEMPORAL = "view_backbone.model", "mask_backbone.model", "view_resampler.layers", "recurrent.blocks"
AUXILIARY = "aux_vis_head"
AUXILIARY_ENDS = (1, 3, 7)  # last rows (exclusive) of the auxiliary head's outputs: visibility, point, box

TEMPORAL_NAMES = {
    "pre_r_ln": "stream_norm",
    "r.orc_block.q_layer": "attention.query",
    "r.orc_block.k_layer": "attention.key",
    "r.orc_block.v_layer": "attention.value",
    "r.orc_block.proj_layer": "attention.output",
    "r.orc_block.r_layer": "attention.mixture",
    "mlp0.norm": "mlp_norm",
    "mlp0.layer": "mlp_in",
    "mlp1.layer": "mlp_out",
}
OUTER_NAMES = {
    "updim_obs": "views.agent_projection",
    "updim_cross": "views.goal_projection",
    "interaction": "interaction",
    "lastlayer.norm": "temporal.output_norm",
    "lastlayer.layer": "temporal.output",
    "final_ln": "temporal.final_norm",
    "action_embedding_layer.camera_layer": "previous_action.action.camera",
}


@dataclass
class Rocket2Source(SourcePolicy):
    config: Rocket2Config

    def make_model(self) -> nn.Module:
        return Rocket2ForActionPrediction(self.config)

    def write_policy_files(self, folder: Path) -> None:
        write_rocket2_files(folder, self.config)


def read_rocket2(folder: Path, heads: HeadCounts | None = None) -> Rocket2Source:
    checkpoint = Checkpoint(folder)
    checkpoint.add_weights()
    config = Rocket2Config(**infer_rocket2_sizes(checkpoint, heads or HeadCounts()))
    for part in ("weight", "bias"):
        checkpoint.shape(f"{AUXILIARY}.{part}")  # raises UserError if it is missing
        checkpoint.split(f"{AUXILIARY}.{part}", *AUXILIARY_ENDS)
    return Rocket2Source(checkpoint, config, rename_rules(config.reads_previous_action))


def infer_rocket2_sizes(checkpoint: Checkpoint, heads: HeadCounts) -> dict[str, Any]:
    shape = checkpoint.shape
    _, view_tokens, width = shape("view_cls_tokens", 3)
    attention = f"{TEMPORAL}.0.r.orc_block"
    reads_previous_action = any(name.startswith("action_embedding_layer.") for name in checkpoint.entries)
    sizes = {
        "width": width,
        "heads": shape(f"{attention}.r_layer.weight", 2)[0] // BIAS_CURVES,
        "view_tokens": view_tokens,
        "spatial_layers": count_blocks(checkpoint, SPATIAL),
        "temporal_layers": count_blocks(checkpoint, TEMPORAL),
        "interactions": shape("interaction.weight", 2)[0] - 1,
        "reads_previous_action": reads_previous_action,
        "window_steps": shape(f"{attention}.b_nd", 2)[1] // (view_tokens + 1 + reads_previous_action),
    }
    return sizes | encoder_sizes(checkpoint, RGB, "rgb", heads) | encoder_sizes(checkpoint, MASK, "mask", heads)


def encoder_sizes(checkpoint: Checkpoint, source: str, prefix: str, heads: HeadCounts) -> dict[str, Any]:
    width, _, _, patch = checkpoint.shape(f"{source}.patch_embed.proj.weight", 4)
    side = patch * round((checkpoint.shape(f"{source}.pos_embed", 3)[1] - 1) ** 0.5)
    return {
        "image_size": [side, side],
        "patch_size": patch,
        f"{prefix}_width": width,
        f"{prefix}_heads": heads.of_tower(prefix, width, VIT_HEADS),
        f"{prefix}_depth": count_blocks(checkpoint, f"{source}.blocks"),
        f"{prefix}_mlp_width": checkpoint.shape(f"{source}.blocks.0.mlp.fc1.weight", 2)[0],
    }


def count_blocks(checkpoint: Checkpoint, prefix: str) -> int:
    matches = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in checkpoint.entries)
    return len({match[1] for match in matches if match})


def rename_rules(reads_previous_action: bool) -> list[Rename | Drop]:
    hidden, block = "dropout_embedding", rf"{re.escape(TEMPORAL)}\.(\d+)"
    auxiliary_rows = zip(AUXILIARY_HEADS, (0, *AUXILIARY_ENDS), AUXILIARY_ENDS, strict=False)
    return [
        *encoder_rules(RGB, "views.rgb"),
        *encoder_rules(MASK, "views.mask"),
        Rename("view_cls_tokens", "views.queries.weight", stack_rows=True),
        Rename(rf"{re.escape(SPATIAL)}\.(.*)", r"views.layers.\1"),
        *(Rename(rf"{re.escape(source)}\.(weight|bias)", rf"{target}.\1") for source, target in OUTER_NAMES.items()),
        Rename(r"action_embedding_layer\.binary_layers\.(.*)", r"previous_action.action.buttons.\1"),
        Rename(hidden, "previous_action.hidden.weight", stack_rows=True)
        if reads_previous_action
        else Drop(hidden, "the previous action's dropout embedding: this policy does not read its previous action"),
        Rename(rf"{block}\.r\.orc_block\.b_nd", r"temporal.blocks.\1.attention.curves.weight"),
        *(
            Rename(rf"{block}\.{re.escape(source)}\.(weight|bias)", rf"temporal.blocks.\1.{target}.\2")
            for source, target in TEMPORAL_NAMES.items()
        ),
        Rename(r"pi_head\.(buttons|camera)\.linear_layer\.(.*)", r"action_heads.factors.act_\1.\2"),
        *(
            Rename(rf"{AUXILIARY}\.(weight|bias)\[{begin}:{end}\]", rf"auxiliary.{name}.\1")
            for name, begin, end in auxiliary_rows
        ),
        Drop(r"value_head\..*", "the value head, which behavior cloning did not train"),
    ]


def encoder_rules(source: str, target: str) -> list[Rename | Drop]:
    pattern = re.escape(source)
    class_token = Rename(rf"{pattern}\.cls_token", f"{target}.class_token.weight", stack_rows=True)
    return [class_token, *vit_rules(pattern, target)]
