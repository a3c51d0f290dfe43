"""lerobot's own pi0 and pi0.5 at tiny sizes: what ours are compared with, for speed here and for numbers in tests.

lerobot's constructors know only the full sizes, so its modules are built here from tiny configurations and handed to
its own policy classes; everything that computes is lerobot's.
"""

import importlib
from types import ModuleType
from typing import Any
from unittest.mock import patch

from torch import nn

from rocket_hf.modeling.configuration_rocket import RocketConfig

CAMERAS = ("observation.images.front", "observation.images.wrist")
CLASSES = {"pi0": ("PI0Config", "PI0Policy"), "pi05": ("PI05Config", "PI05Policy")}


def lerobot_policy(config: RocketConfig) -> Any:
    """lerobot's PI0Policy or PI05Policy at the sizes of our configuration, with weights of its own."""
    sizes = config.policy_config
    module = importlib.import_module(f"lerobot.policies.{sizes.variant}.modeling_{sizes.variant}")
    settings_class, policy_class = (getattr(module, name) for name in CLASSES[sizes.variant])
    width = {"gemma_2b": sizes.width, "gemma_300m": sizes.expert_width}
    core = tiny_core(module, config)
    with (
        patch.object(module, "get_gemma_config", lambda name: module.GemmaConfig(width[name], 0, 0, 0, 0, 0)),
        patch.object(module, "PaliGemmaWithExpertModel", lambda *args, **kwargs: core),
    ):
        return policy_class(settings_class(**lerobot_settings(config))).eval()


def lerobot_settings(config: RocketConfig) -> dict[str, Any]:
    from lerobot.configs import FeatureType, PolicyFeature

    sizes = config.policy_config
    image = PolicyFeature(FeatureType.VISUAL, (3, sizes.image_size, sizes.image_size))
    return {
        "input_features": dict.fromkeys(CAMERAS, image)
        | {"observation.state": PolicyFeature(FeatureType.STATE, (config.state_dim,))},
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (config.action_dim,))},
        "chunk_size": config.chunk_size,
        "n_action_steps": config.chunk_size,
        "max_state_dim": sizes.max_state_dim,
        "max_action_dim": sizes.max_action_dim,
        "image_resolution": (sizes.image_size, sizes.image_size),
        "device": "cpu",
    }


def tiny_core(module: ModuleType, config: RocketConfig) -> nn.Module:
    """lerobot's PaliGemmaWithExpertModel around tiny instances of lerobot's own Gemma classes."""
    from lerobot.policies.pi_gemma import PaliGemmaForConditionalGenerationWithPiGemma, PiGemmaForCausalLM
    from transformers import PaliGemmaConfig

    sizes = config.policy_config
    adaptive = sizes.variant == "pi05"
    expert = sizes.expert_config.to_dict()
    expert |= {"use_adarms": adaptive, "adarms_cond_dim": sizes.expert_width if adaptive else None}
    paligemma = PaliGemmaConfig(
        text_config=sizes.language_config.to_dict(),
        vision_config=sizes.vision_config.to_dict() | {"vision_use_head": False},
        projection_dim=sizes.width,
        hidden_size=sizes.width,
        image_token_index=sizes.vocab_size - 1,
        vocab_size=sizes.vocab_size,
    )
    core = module.PaliGemmaWithExpertModel.__new__(module.PaliGemmaWithExpertModel)
    nn.Module.__init__(core)
    core.freeze_vision_encoder = core.train_expert_only = False
    core.paligemma = PaliGemmaForConditionalGenerationWithPiGemma(paligemma)
    core.gemma_expert = PiGemmaForCausalLM(type(sizes.expert_config)(**expert))
    core.gemma_expert.model.embed_tokens = None
    return core


def lerobot_batch(batch: dict[str, Any], present: tuple[str, ...] = CAMERAS) -> dict[str, Any]:
    """Our batch under lerobot's names; cameras that are not present are left out."""
    images = {name: batch["images"][:, index].float() / 255 for index, name in enumerate(CAMERAS) if name in present}
    named = {
        "observation.state": batch["state"],
        "observation.language.tokens": batch["input_ids"],
        "observation.language.attention_mask": batch["attention_mask"].bool(),
        "action": batch["actions"],
    }
    return images | named
