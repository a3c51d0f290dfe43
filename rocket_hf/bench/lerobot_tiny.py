"""lerobot's policies at tiny sizes, as references for speed (benchmarks) and for numerical results (tests).

lerobot's constructors support only the full sizes. Its modules are therefore built from tiny configurations and passed
to its policy classes; all computations are lerobot's.
"""

import contextlib
import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

from torch import nn

from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.configuration_smolvla import SmolVLAConfig

CAMERAS = ("observation.images.front", "observation.images.wrist")
FAKE_ID, GLOBAL_ID = 100, 101  # ids of the special tokens around SmolVLA's image tokens
CLASSES = {"pi0": ("PI0Config", "PI0Policy"), "pi05": ("PI05Config", "PI05Policy")}


def lerobot_policy(config: RocketConfig) -> Any:
    """Return lerobot's policy with the sizes of our configuration and its own random weights."""
    return lerobot_smolvla(config) if isinstance(config.policy_config, SmolVLAConfig) else lerobot_pi(config)


def lerobot_pi(config: RocketConfig) -> Any:
    """Return lerobot's PI0Policy or PI05Policy."""
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
    """Return lerobot's PaliGemmaWithExpertModel with tiny instances of lerobot's Gemma classes."""
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
    """Rename the entries of our batch as lerobot expects them. Cameras not in `present` are left out."""
    images = {name: batch["images"][:, index].float() / 255 for index, name in enumerate(CAMERAS) if name in present}
    named = {
        "observation.state": batch["state"],
        "observation.language.tokens": batch["input_ids"],
        "observation.language.attention_mask": batch["attention_mask"].bool(),
        "action": batch["actions"],
    }
    return images | named


def smolvlm_config(sizes: SmolVLAConfig, depth: int) -> Any:
    """Return transformers' configuration of the vision-language model whose lower layers SmolVLA uses."""
    from transformers import SmolVLMConfig

    text = sizes.language_config.to_dict() | {"num_hidden_layers": depth, "model_type": "llama"}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 100_000.0}  # lerobot ignores it
    return SmolVLMConfig(
        text_config=text,
        vision_config={
            "hidden_size": sizes.vision_width,
            "intermediate_size": sizes.vision_mlp_width,
            "num_hidden_layers": sizes.vision_depth,
            "num_attention_heads": sizes.vision_heads,
            "image_size": sizes.image_size,
            "patch_size": sizes.patch_size,
        },
        scale_factor=sizes.pixel_shuffle,
        image_token_id=sizes.vocab_size - 1,
        pad_token_id=0,
    )


def lerobot_smolvla(config: RocketConfig, **settings: Any) -> Any:
    """Return lerobot's SmolVLAPolicy with the sizes of our configuration and its own random weights.

    Its constructor loads the vision-language model's configuration from the Hub, which is replaced by a tiny one.
    """
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.smolvla import configuration_smolvla, modeling_smolvla, smolvlm_with_expert

    sizes = config.policy_config
    image = PolicyFeature(FeatureType.VISUAL, (3, sizes.image_size, sizes.image_size))
    published = configuration_smolvla.SmolVLAConfig(
        input_features=dict.fromkeys(CAMERAS, image)
        | {"observation.state": PolicyFeature(FeatureType.STATE, (config.state_dim,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (config.action_dim,))},
        chunk_size=config.chunk_size,
        n_action_steps=config.chunk_size,
        max_state_dim=sizes.max_state_dim,
        max_action_dim=sizes.max_action_dim,
        resize_imgs_with_padding=(sizes.image_size, sizes.image_size),
        num_vlm_layers=sizes.depth,
        self_attn_every_n_layers=sizes.self_attention_every,
        expert_width_multiplier=sizes.expert_width / sizes.width,
        add_image_special_tokens=bool(sizes.image_start_ids),
        device="cpu",
        **settings,
    )
    tokenizer = SimpleNamespace(fake_image_token_id=FAKE_ID, global_image_token_id=GLOBAL_ID)
    with (
        patch.object(
            smolvlm_with_expert.AutoConfig, "from_pretrained", lambda _: smolvlm_config(sizes, 2 * sizes.depth)
        ),
        patch.object(
            smolvlm_with_expert.AutoProcessor, "from_pretrained", lambda _: SimpleNamespace(tokenizer=tokenizer)
        ),
        patch.object(smolvlm_with_expert, "get_intermediate_size", lambda _: sizes.expert_mlp_width),
        contextlib.redirect_stdout(sys.stderr),  # the constructor prints the number of layers
    ):
        return modeling_smolvla.SmolVLAPolicy(published).eval()
