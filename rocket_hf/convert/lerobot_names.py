"""What the weights of lerobot's pi0, pi0.5 and SmolVLA are called there and here, in one table for both directions.

`{n}` is a layer's number and `{rest}` whatever follows. Which of two alternatives a checkpoint holds (plain or adaptive
norms, pi0's or pi0.5's name of the time's MLP) depends on the variant, so each variant has its own table.
"""

import re

from .plan import Drop, Rename

Names = list[tuple[str, str]]  # lerobot's, ours

VLM = "paligemma_with_expert.paligemma.model"
EXPERT = "paligemma_with_expert.gemma_expert"
SMOL = "vlm_with_expert.vlm.model"
SMOL_EXPERT = "vlm_with_expert.lm_expert"
UNREAD_NORM = "the final norm of the language model, which no action reads"
UNSPOKEN = "the policy writes no text"


def layers(theirs: str, half: str, adaptive: bool = False) -> Names:
    at, here = f"{theirs}.layers.{{n}}", f"policy.layers.{{n}}.{half}"
    norm, own = (".dense.{rest}", ".modulation.{rest}") if adaptive else (".weight", ".weight")
    return [
        (f"{at}.self_attn.{{rest}}", f"{here}.attention.{{rest}}"),
        (f"{at}.mlp.{{rest}}", f"{here}.mlp.{{rest}}"),
        (f"{at}.input_layernorm{norm}", f"{here}.attention_norm{own}"),
        (f"{at}.post_attention_layernorm{norm}", f"{here}.mlp_norm{own}"),
    ]


def vision(theirs: str) -> Names:
    return [
        (f"{theirs}.embeddings.patch_embedding.{{rest}}", "policy.vision_tower.patch_embedding.{rest}"),
        (f"{theirs}.embeddings.position_embedding.{{rest}}", "policy.vision_tower.position_embedding.{rest}"),
        (f"{theirs}.encoder.layers.{{rest}}", "policy.vision_tower.layers.{rest}"),
        (f"{theirs}.post_layernorm.{{rest}}", "policy.vision_tower.norm.{rest}"),
    ]


def action_names(time: str) -> Names:
    return [
        ("state_proj.{rest}", "policy.state_projection.{rest}"),
        ("action_in_proj.{rest}", "policy.action_in.{rest}"),
        ("action_out_proj.{rest}", "policy.action_out.{rest}"),
        (f"{time}_in.{{rest}}", "policy.time_mlp_in.{rest}"),
        (f"{time}_out.{{rest}}", "policy.time_mlp_out.{rest}"),
    ]


def pi_names(adaptive: bool) -> Names:
    norm, own = ("norm.dense.{rest}", "modulation.{rest}") if adaptive else ("norm.weight", "weight")
    return [
        *layers(f"{VLM}.language_model", "language"),
        *layers(f"{EXPERT}.model", "expert", adaptive),
        *vision(f"{VLM}.vision_tower.vision_model"),
        (f"{VLM}.multi_modal_projector.linear.{{rest}}", "policy.image_projection.{rest}"),
        (f"{VLM}.language_model.embed_tokens.weight", "policy.embed_tokens.weight"),
        (f"{EXPERT}.model.{norm}", f"policy.expert_norm.{own}"),
        *action_names("time_mlp" if adaptive else "action_time_mlp"),
    ]


NAMES: dict[str, Names] = {
    "pi0": pi_names(adaptive=False),
    "pi05": pi_names(adaptive=True),
    "smolvla": [
        *layers(f"{SMOL}.text_model", "language"),
        *layers(SMOL_EXPERT, "expert"),
        *vision(f"{SMOL}.vision_model"),
        (f"{SMOL}.connector.modality_projection.proj.{{rest}}", "policy.image_projection.{rest}"),
        (f"{SMOL}.text_model.embed_tokens.weight", "policy.embed_tokens.weight"),
        (f"{SMOL_EXPERT}.norm.weight", "policy.expert_norm.weight"),
        *action_names("action_time_mlp"),
    ],
}
# lerobot's weights that no action depends on, and why.
UNUSED = {
    "pi0": {f"{VLM}.language_model.norm.weight": UNREAD_NORM, f"{EXPERT}.lm_head.weight": UNSPOKEN},
    "smolvla": {f"{SMOL}.text_model.norm.weight": UNREAD_NORM, "vlm_with_expert.vlm.lm_head.weight": UNSPOKEN},
}
UNUSED["pi05"] = UNUSED["pi0"]
# PaliGemma's text head and its embedding are one tensor, of which a file may hold either name or both.
TIED_HEAD, EMBEDDING = "paligemma_with_expert.paligemma.lm_head.weight", f"{VLM}.language_model.embed_tokens.weight"


def to_ours(kind: str, tied_head_alone: bool) -> list[Rename | Drop]:
    """The rules for a checkpoint of lerobot's, with or without its prefix `model.`."""
    names = NAMES[kind]
    rules: list[Rename | Drop] = [Rename(rf"(?:model\.)?{pattern(a)}", template(b)) for a, b in names]
    rules += [Drop(rf"(?:model\.)?{re.escape(name)}", reason) for name, reason in UNUSED[kind].items()]
    head = rf"(?:model\.)?{re.escape(TIED_HEAD)}"
    kept = Rename(head, "policy.embed_tokens.weight")
    return [*rules, kept if tied_head_alone else Drop(head, "tied to the embedding, which is kept")]


def to_lerobots(kind: str) -> list[Rename]:
    return [Rename(pattern(ours), f"model.{template(theirs)}") for theirs, ours in NAMES[kind]]


def pattern(name: str) -> str:
    return re.escape(name).replace(r"\{n\}", r"(\d+)").replace(r"\{rest\}", "(.*)")


def template(name: str) -> str:
    for number, placeholder in enumerate(re.findall(r"\{n\}|\{rest\}", name), start=1):
        name = name.replace(placeholder, rf"\{number}")
    return name
