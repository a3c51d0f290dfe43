"""lerobot's pi0 and pi0.5 folders (and openpi's PyTorch weights in them) to ours."""

from pathlib import Path

from ..modeling.configuration_pi0 import Pi0Config
from ..modeling.configuration_rocket import RocketConfig
from ..modeling.flow_matching import MAX_PERIOD, MIN_PERIOD
from ..modeling.processing_rocket import RocketProcessor
from .checkpoint import Checkpoint
from .lerobot_folder import LeRobotFolder
from .plan import Drop, Rename
from .write import Found

CORE = r"(?:model\.)?paligemma_with_expert"
VLM = rf"{CORE}\.paligemma\.model"
VISION = rf"{VLM}\.vision_tower\.vision_model"
VISION_HEAD_WIDTH = 72  # of SigLIP-So400m: its 1152 channels are 16 heads

# Settings of lerobot's that change what its actions mean, and the one value that means the same here.
FIXED = {"use_relative_actions": False, "min_period": MIN_PERIOD, "max_period": MAX_PERIOD}

NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
TOWERS = {rf"{VLM}\.language_model": "language", rf"{CORE}\.gemma_expert\.model": "expert"}


def layer_rules() -> list[Rename]:
    rules = []
    for tower, half in TOWERS.items():
        layer = rf"{tower}\.layers\.(\d+)"
        rules.append(Rename(rf"{layer}\.self_attn\.(.*)", rf"policy.layers.\1.{half}.attention.\2"))
        rules.append(Rename(rf"{layer}\.mlp\.(.*)", rf"policy.layers.\1.{half}.mlp.\2"))
        for theirs, ours in NORMS.items():
            rules.append(Rename(rf"{layer}\.{theirs}\.dense\.(.*)", rf"policy.layers.\1.{half}.{ours}.modulation.\2"))
            rules.append(Rename(rf"{layer}\.{theirs}\.weight", rf"policy.layers.\1.{half}.{ours}.weight"))
    return rules


RULES: list[Rename | Drop] = [
    *layer_rules(),
    Rename(rf"{VISION}\.embeddings\.(patch_embedding|position_embedding)\.(.*)", r"policy.vision_tower.\1.\2"),
    Rename(rf"{VISION}\.encoder\.layers\.(.*)", r"policy.vision_tower.layers.\1"),
    Rename(rf"{VISION}\.post_layernorm\.(.*)", r"policy.vision_tower.norm.\1"),
    Rename(rf"{VLM}\.multi_modal_projector\.linear\.(.*)", r"policy.image_projection.\1"),
    Rename(rf"{VLM}\.language_model\.embed_tokens\.weight", "policy.embed_tokens.weight"),
    Rename(rf"{CORE}\.gemma_expert\.model\.norm\.dense\.(.*)", r"policy.expert_norm.modulation.\1"),
    Rename(rf"{CORE}\.gemma_expert\.model\.norm\.weight", "policy.expert_norm.weight"),
    Rename(r"(?:model\.)?state_proj\.(.*)", r"policy.state_projection.\1"),
    Rename(r"(?:model\.)?action_(in|out)_proj\.(.*)", r"policy.action_\1.\2"),
    Rename(r"(?:model\.)?(?:action_)?time_mlp_(in|out)\.(.*)", r"policy.time_mlp_\1.\2"),
    Drop(rf"{VLM}\.language_model\.norm\.weight", "the final norm of the language model, which no action reads"),
    Drop(rf"{CORE}\.gemma_expert\.lm_head\.weight", "the expert writes no text"),
    Drop(rf"{CORE}\.gemma_expert\.model\.embed_tokens\.weight", "the expert reads no text"),
]
TIED_HEAD = rf"{CORE}\.paligemma\.lm_head\.weight"


def rules_for(checkpoint: Checkpoint) -> list[Rename | Drop]:
    """The text head and the embedding are one tensor, of which a file may hold either name or both."""
    embedded = any(name.endswith("language_model.embed_tokens.weight") for name in checkpoint.entries)
    if embedded:
        return [*RULES, Drop(TIED_HEAD, "tied to the embedding, which is kept")]
    return [*RULES, Rename(TIED_HEAD, "policy.embed_tokens.weight")]


def sizes(checkpoint: Checkpoint, variant: str) -> dict[str, int | str]:
    """The sizes of the policy, read off its tensors; one key-value head, as Gemma has it."""
    names = {name.removeprefix("model."): name for name in checkpoint.entries}

    def shape(name: str) -> tuple[int, ...]:
        return checkpoint.shape(names.get(name, name))

    vlm, expert = "paligemma_with_expert.paligemma.model", "paligemma_with_expert.gemma_expert.model"
    vision = f"{vlm}.vision_tower.vision_model"
    embedding = f"{vlm}.language_model.embed_tokens.weight"
    vocabulary, width = shape(embedding if embedding in names else "paligemma_with_expert.paligemma.lm_head.weight")
    head_dim = shape(f"{vlm}.language_model.layers.0.self_attn.k_proj.weight")[0]
    patches, vision_width = shape(f"{vision}.embeddings.position_embedding.weight")
    patch = shape(f"{vision}.embeddings.patch_embedding.weight")[-1]
    numbers = {
        "vocab_size": vocabulary,
        "width": width,
        "head_dim": head_dim,
        "heads": shape(f"{vlm}.language_model.layers.0.self_attn.q_proj.weight")[0] // head_dim,
        "depth": count_layers(names, f"{vlm}.language_model.layers."),
        "mlp_width": shape(f"{vlm}.language_model.layers.0.mlp.up_proj.weight")[0],
        "expert_width": shape("action_in_proj.weight")[0],
        "expert_mlp_width": shape(f"{expert}.layers.0.mlp.up_proj.weight")[0],
        "vision_width": vision_width,
        "vision_heads": max(1, vision_width // VISION_HEAD_WIDTH),
        "vision_depth": count_layers(names, f"{vision}.encoder.layers."),
        "vision_mlp_width": shape(f"{vision}.encoder.layers.0.mlp.fc1.weight")[0],
        "patch_size": patch,
        "image_size": patch * round(patches**0.5),
        "max_action_dim": shape("action_in_proj.weight")[1],
    }
    if variant == "pi0":
        numbers["max_state_dim"] = shape("state_proj.weight")[1]
    return numbers | {"variant": variant}


def count_layers(names: dict[str, str], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)})


def read(folder: Path, variant: str, tokenizer: str | None = None) -> Found:
    described = LeRobotFolder.read(folder, variant)
    for key, only in FIXED.items():
        if described.config.get(key, only) != only:
            raise ValueError(f"config.json sets {key}={described.config[key]}; only {only} is supported")
    checkpoint = Checkpoint(folder)
    checkpoint.add_weights()
    steps = described.config.get("num_inference_steps", 10)
    policy = Pi0Config(**sizes(checkpoint, variant), denoising_steps=steps)
    config = RocketConfig(policy_config=policy, **described.robot())
    length = described.config.get("tokenizer_max_length", policy.max_prompt_length)
    processor = RocketProcessor.for_config(
        config, described.tokenizer(tokenizer), described.statistics, max_prompt_length=length
    )
    return Found(checkpoint, config, processor, rules_for(checkpoint))
