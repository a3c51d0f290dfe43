"""Tiny policies with tokenizer and statistics that need no download and run on a CPU, for demos and tests."""

import string
from collections.abc import Callable
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .modeling.configuration_openvla import OpenVLAPolicyConfig
from .modeling.configuration_pi0 import Pi0Config
from .modeling.configuration_rocket import AlignmentConfig, RocketConfig
from .modeling.configuration_smolvla import SmolVLAConfig
from .modeling.normalization import Statistics
from .modeling.strict_config import StrictConfig

SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>")
CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " \n"

PI0_SIZES = {
    "depth": 3,
    "heads": 8,
    "kv_heads": 1,
    "head_dim": 8,
    "width": 32,
    "mlp_width": 64,
    "expert_width": 16,
    "expert_mlp_width": 32,
    "vocab_size": 128,
    "vision_depth": 2,
    "vision_heads": 2,
    "vision_width": 24,
    "vision_mlp_width": 48,
    "image_size": 28,
    "patch_size": 7,
    "max_state_dim": 8,
    "max_action_dim": 8,
}
SMOLVLA_SIZES = {
    "depth": 3,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 8,
    "width": 32,
    "mlp_width": 64,
    "expert_width": 24,
    "expert_mlp_width": 48,
    "vocab_size": 128,
    "vision_depth": 2,
    "vision_heads": 2,
    "vision_width": 24,
    "vision_mlp_width": 48,
    "image_size": 32,
    "patch_size": 4,
    "pixel_shuffle": 2,
    "max_state_dim": 8,
    "max_action_dim": 8,
}
OPENVLA_SIZES = {
    "depth": 3,
    "heads": 4,
    "kv_heads": 4,
    "width": 32,
    "mlp_width": 64,
    "vocab_size": 128,
    "dino_depth": 3,
    "dino_heads": 2,
    "dino_width": 16,
    "dino_mlp_width": 32,
    "dino_registers": 2,
    "siglip_depth": 2,
    "siglip_heads": 2,
    "siglip_width": 24,
    "siglip_mlp_width": 48,
    "image_size": 28,
    "patch_size": 7,
    "base_vocab_size": 124,
    "action_bins": 16,
    "empty_token_id": 101,
    "end_token_id": 1,
    "action_head_width": 32,
}
# Tiny backbone configuration of every policy family.
TINY_POLICIES: dict[str, Callable[[], StrictConfig]] = {
    "pi0": lambda: Pi0Config(variant="pi0", **PI0_SIZES),
    "pi05": lambda: Pi0Config(variant="pi05", **PI0_SIZES),
    "smolvla": lambda: SmolVLAConfig(**SMOLVLA_SIZES),
    "openvla-oft": lambda: OpenVLAPolicyConfig(variant="oft", **OPENVLA_SIZES),
    "openvla": lambda: OpenVLAPolicyConfig(variant="openvla", **OPENVLA_SIZES),
}


def tiny_config(family: str = "pi0", **changes: Any) -> RocketConfig:
    """Return the configuration of a policy with about 60,000 parameters and three aligned layer pairs.

    It has two cameras and chunks of four steps, or fewer if the backbone has a lower limit.

    Args:
        family: Key of `TINY_POLICIES`.
        **changes: Other values of `RocketConfig` keys.
    """
    alignment = AlignmentConfig(student_layers=(1, 2, -1), teacher_layers=(2, 3, 4), hidden_width=32, target_width=24)
    policy = TINY_POLICIES[family]()
    settings: dict[str, Any] = {
        "policy_config": policy,
        "alignment": alignment,
        "cameras": ["front", "wrist"][: policy.max_cameras],
        "state_dim": 6,
        "action_dim": 5,
        "chunk_size": policy.max_chunk_size or 4,
    }
    return RocketConfig(**(settings | changes))


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per character that starts with a BOS token, as PaliGemma's does."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )


def tiny_statistics(config: RocketConfig) -> dict[str, Statistics]:
    """Return statistics of a made-up robot, which differ between dimensions."""

    def vector_statistics(dim: int) -> Statistics:
        std = [0.5 + index / 4 for index in range(dim)]
        mean = [index / 10 for index in range(dim)]
        low = [center - 2 * deviation for center, deviation in zip(mean, std, strict=True)]
        high = [center + 2 * deviation for center, deviation in zip(mean, std, strict=True)]
        return {"mean": mean, "std": std, "min": low, "max": high, "q01": low, "q99": high}

    return {"state": vector_statistics(config.state_dim), "action": vector_statistics(config.action_dim)}
