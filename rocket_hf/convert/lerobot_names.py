"""Table of weight names in lerobot's pi0, pi0.5 and SmolVLA and in this package, used for both directions.

`{n}` stands for a layer number and `{rest}` for any suffix. Each variant has its own table, because the variant decides
between alternatives: plain or adaptive norms, and the name of the time MLP.
"""

import re

from .plan import Drop, Rename

Names = list[tuple[str, str]]  # (name in lerobot, name in this package)

VLM = "paligemma_with_expert.paligemma.model"
EXPERT = "paligemma_with_expert.gemma_expert"
SMOL = "vlm_with_expert.vlm.model"
SMOL_EXPERT = "vlm_with_expert.lm_expert"
UNUSED_NORM = "the final norm of the language model, which does not affect the actions"
UNUSED_TEXT_HEAD = "the text head: the policy generates no text"


def layer_names(lerobot_module: str, part: str, adaptive: bool = False) -> Names:
    """Return the names of the transformer layers. `part` is `language` or `expert`."""
    source, target = f"{lerobot_module}.layers.{{n}}", f"policy.layers.{{n}}.{part}"
    lerobot_norm, norm = (".dense.{rest}", ".modulation.{rest}") if adaptive else (".weight", ".weight")
    return [
        (f"{source}.self_attn.{{rest}}", f"{target}.attention.{{rest}}"),
        (f"{source}.mlp.{{rest}}", f"{target}.mlp.{{rest}}"),
        (f"{source}.input_layernorm{lerobot_norm}", f"{target}.attention_norm{norm}"),
        (f"{source}.post_attention_layernorm{lerobot_norm}", f"{target}.mlp_norm{norm}"),
    ]


def vision_names(lerobot_module: str) -> Names:
    return [
        (f"{lerobot_module}.embeddings.patch_embedding.{{rest}}", "policy.vision_tower.patch_embedding.{rest}"),
        (f"{lerobot_module}.embeddings.position_embedding.{{rest}}", "policy.vision_tower.position_embedding.{rest}"),
        (f"{lerobot_module}.encoder.layers.{{rest}}", "policy.vision_tower.layers.{rest}"),
        (f"{lerobot_module}.post_layernorm.{{rest}}", "policy.vision_tower.norm.{rest}"),
    ]


def action_names(time_mlp: str) -> Names:
    return [
        ("state_proj.{rest}", "policy.state_projection.{rest}"),
        ("action_in_proj.{rest}", "policy.action_in.{rest}"),
        ("action_out_proj.{rest}", "policy.action_out.{rest}"),
        (f"{time_mlp}_in.{{rest}}", "policy.time_mlp_in.{rest}"),
        (f"{time_mlp}_out.{{rest}}", "policy.time_mlp_out.{rest}"),
    ]


def pi_names(adaptive: bool) -> Names:
    lerobot_norm, norm = ("norm.dense.{rest}", "modulation.{rest}") if adaptive else ("norm.weight", "weight")
    return [
        *layer_names(f"{VLM}.language_model", "language"),
        *layer_names(f"{EXPERT}.model", "expert", adaptive),
        *vision_names(f"{VLM}.vision_tower.vision_model"),
        (f"{VLM}.multi_modal_projector.linear.{{rest}}", "policy.image_projection.{rest}"),
        (f"{VLM}.language_model.embed_tokens.weight", "policy.embed_tokens.weight"),
        (f"{EXPERT}.model.{lerobot_norm}", f"policy.expert_norm.{norm}"),
        *action_names("time_mlp" if adaptive else "action_time_mlp"),
    ]


NAMES: dict[str, Names] = {
    "pi0": pi_names(adaptive=False),
    "pi05": pi_names(adaptive=True),
    "smolvla": [
        *layer_names(f"{SMOL}.text_model", "language"),
        *layer_names(SMOL_EXPERT, "expert"),
        *vision_names(f"{SMOL}.vision_model"),
        (f"{SMOL}.connector.modality_projection.proj.{{rest}}", "policy.image_projection.{rest}"),
        (f"{SMOL}.text_model.embed_tokens.weight", "policy.embed_tokens.weight"),
        (f"{SMOL_EXPERT}.norm.weight", "policy.expert_norm.weight"),
        *action_names("action_time_mlp"),
    ],
}
# lerobot weights that do not affect the actions, with the reason.
UNUSED = {
    "pi0": {f"{VLM}.language_model.norm.weight": UNUSED_NORM, f"{EXPERT}.lm_head.weight": UNUSED_TEXT_HEAD},
    "smolvla": {
        f"{SMOL}.text_model.norm.weight": UNUSED_NORM,
        "vlm_with_expert.vlm.lm_head.weight": UNUSED_TEXT_HEAD,
    },
}
UNUSED["pi05"] = UNUSED["pi0"]
# PaliGemma's text head and its embedding are the same tensor; a file may contain either name or both.
TIED_HEAD, EMBEDDING = "paligemma_with_expert.paligemma.lm_head.weight", f"{VLM}.language_model.embed_tokens.weight"


def rules_from_lerobot(policy_type: str, has_only_tied_head: bool) -> list[Rename | Drop]:
    """Return the rules for a lerobot checkpoint, with or without its prefix `model.`.

    `has_only_tied_head`: the checkpoint contains the embedding only under the name of the text head.
    """
    rules: list[Rename | Drop] = [
        Rename(rf"(?:model\.)?{name_pattern(source)}", name_template(target)) for source, target in NAMES[policy_type]
    ]
    rules += [Drop(rf"(?:model\.)?{re.escape(name)}", reason) for name, reason in UNUSED[policy_type].items()]
    head = rf"(?:model\.)?{re.escape(TIED_HEAD)}"
    if has_only_tied_head:
        return [*rules, Rename(head, "policy.embed_tokens.weight")]
    return [*rules, Drop(head, "the text head, which is tied to the embedding")]


def rules_to_lerobot(policy_type: str) -> list[Rename]:
    return [Rename(name_pattern(name), f"model.{name_template(lerobot)}") for lerobot, name in NAMES[policy_type]]


def name_pattern(name: str) -> str:
    return re.escape(name).replace(r"\{n\}", r"(\d+)").replace(r"\{rest\}", "(.*)")


def name_template(name: str) -> str:
    for number, placeholder in enumerate(re.findall(r"\{n\}|\{rest\}", name), start=1):
        name = name.replace(placeholder, rf"\{number}")
    return name
