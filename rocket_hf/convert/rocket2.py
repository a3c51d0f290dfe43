"""The public ROCKET-2 checkpoints to ours. All sizes are read off the tensors; the folder's own config.json is not."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rocket_hf.export.export_files import write_rocket2_surroundings
from rocket_hf.modeling.configuration_rocket2 import AUXILIARY_HEADS, Rocket2Config
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.rocket2_temporal import CURVES

from .checkpoint import Checkpoint
from .plan import Drop, Rename
from .timm_names import vit_rules
from .write import Found

VIT_HEAD = 64  # the width of one attention head of both encoders, which no tensor's shape tells
RGB, MASK, SPATIAL, TEMPORAL = "view_backbone.model", "mask_backbone.model", "view_resampler.layers", "recurrent.blocks"
AUXILIARY = "aux_vis_head"
ENDS = (1, 3, 7)  # of the rows of the auxiliary head: visibility, point, box

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
class FoundRocket2(Found):
    config: Rocket2Config

    def make_model(self) -> nn.Module:
        return Rocket2ForActionPrediction(self.config)

    def write_surroundings(self, folder: Path) -> None:
        write_rocket2_surroundings(folder, self.config)


def read(folder: Path) -> FoundRocket2:
    checkpoint = Checkpoint(folder)
    checkpoint.add_weights()
    config = Rocket2Config(**sizes(checkpoint))
    for part in ("weight", "bias"):
        checkpoint.shape(f"{AUXILIARY}.{part}")  # or the sentence that it is missing
        checkpoint.split(f"{AUXILIARY}.{part}", *ENDS)
    return FoundRocket2(checkpoint, config, rules(config.reads_previous_action))


def sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    shape = checkpoint.shape
    _, view_tokens, width = shape("view_cls_tokens")
    relative = f"{TEMPORAL}.0.r.orc_block"
    remembers = any(name.startswith("action_embedding_layer.") for name in checkpoint.entries)
    found = {
        "width": width,
        "heads": shape(f"{relative}.r_layer.weight")[0] // CURVES,
        "view_tokens": view_tokens,
        "spatial_layers": count(checkpoint, SPATIAL),
        "temporal_layers": count(checkpoint, TEMPORAL),
        "interactions": shape("interaction.weight")[0] - 1,
        "reads_previous_action": remembers,
        "window_steps": shape(f"{relative}.b_nd")[1] // (view_tokens + 1 + remembers),
    }
    return found | encoder_sizes(checkpoint, RGB, "rgb") | encoder_sizes(checkpoint, MASK, "mask")


def encoder_sizes(checkpoint: Checkpoint, theirs: str, ours: str) -> dict[str, Any]:
    width, *_, patch = checkpoint.shape(f"{theirs}.patch_embed.proj.weight")
    side = patch * round((checkpoint.shape(f"{theirs}.pos_embed")[1] - 1) ** 0.5)
    return {
        "image_size": [side, side],
        "patch_size": patch,
        f"{ours}_width": width,
        f"{ours}_heads": max(1, width // VIT_HEAD),
        f"{ours}_depth": count(checkpoint, f"{theirs}.blocks"),
        f"{ours}_mlp_width": checkpoint.shape(f"{theirs}.blocks.0.mlp.fc1.weight")[0],
    }


def count(checkpoint: Checkpoint, prefix: str) -> int:
    matches = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in checkpoint.entries)
    return len({match[1] for match in matches if match})


def rules(remembers: bool) -> list[Rename | Drop]:
    hidden, block = "dropout_embedding", rf"{re.escape(TEMPORAL)}\.(\d+)"
    parts = zip(AUXILIARY_HEADS, (0, *ENDS), ENDS, strict=False)
    return [
        *encoder_rules(RGB, "views.rgb"),
        *encoder_rules(MASK, "views.mask"),
        Rename("view_cls_tokens", "views.queries.weight", rows=True),
        Rename(rf"{re.escape(SPATIAL)}\.(.*)", r"views.layers.\1"),
        *(Rename(rf"{re.escape(theirs)}\.(weight|bias)", rf"{ours}.\1") for theirs, ours in OUTER_NAMES.items()),
        Rename(r"action_embedding_layer\.binary_layers\.(.*)", r"previous_action.action.buttons.\1"),
        Rename(hidden, "previous_action.hidden.weight", rows=True)
        if remembers
        else Drop(hidden, "this policy does not read its previous action"),
        Rename(rf"{block}\.r\.orc_block\.b_nd", r"temporal.blocks.\1.attention.curves.weight"),
        *(
            Rename(rf"{block}\.{re.escape(theirs)}\.(weight|bias)", rf"temporal.blocks.\1.{ours}.\2")
            for theirs, ours in TEMPORAL_NAMES.items()
        ),
        Rename(r"pi_head\.(buttons|camera)\.linear_layer\.(.*)", r"action_heads.factors.act_\1.\2"),
        *(
            Rename(rf"{AUXILIARY}\.(weight|bias)\[{begin}:{end}\]", rf"auxiliary.{name}.\1")
            for name, begin, end in parts
        ),
        Drop(r"value_head\..*", "the value head, which cloning did not train"),
    ]


def encoder_rules(theirs: str, ours: str) -> list[Rename | Drop]:
    theirs = re.escape(theirs)
    return [Rename(rf"{theirs}\.cls_token", f"{ours}.class_token.weight", rows=True), *vit_rules(theirs, ours)]
