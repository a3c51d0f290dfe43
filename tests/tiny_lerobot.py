"""lerobot's own pi0 and pi0.5 at tiny sizes.

lerobot's constructors know only the full sizes, so its modules are built here from tiny configurations and handed to
its own policy classes; everything that computes is lerobot's.
"""

import importlib

from torch import nn

CAMERAS = ("observation.images.front", "observation.images.wrist")


def tiny_lerobot_core(module, config):
    """lerobot's PaliGemmaWithExpertModel around tiny instances of lerobot's own Gemma classes."""
    from lerobot.policies.pi_gemma import PaliGemmaForConditionalGenerationWithPiGemma, PiGemmaForCausalLM
    from transformers import PaliGemmaConfig

    sizes = config.policy_config
    adaptive = sizes.variant == "pi05"
    text, expert = sizes.language_config.to_dict(), sizes.expert_config.to_dict()
    expert |= {"use_adarms": adaptive, "adarms_cond_dim": sizes.expert_width if adaptive else None}
    vision = sizes.vision_config.to_dict() | {"vision_use_head": False}
    paligemma = PaliGemmaConfig(
        text_config=text, vision_config=vision, projection_dim=sizes.width, hidden_size=sizes.width,
        image_token_index=sizes.vocab_size - 1, vocab_size=sizes.vocab_size,
    )  # fmt: skip
    core = module.PaliGemmaWithExpertModel.__new__(module.PaliGemmaWithExpertModel)
    nn.Module.__init__(core)
    core.freeze_vision_encoder = core.train_expert_only = False
    core.paligemma = PaliGemmaForConditionalGenerationWithPiGemma(paligemma)
    core.gemma_expert = PiGemmaForCausalLM(type(sizes.expert_config)(**expert))
    core.gemma_expert.model.embed_tokens = None
    return core


def lerobot_policy(config, monkeypatch):
    """lerobot's PI0Policy or PI05Policy at the sizes of our configuration."""
    from lerobot.configs import FeatureType, PolicyFeature

    sizes = config.policy_config
    module = importlib.import_module(f"lerobot.policies.{sizes.variant}.modeling_{sizes.variant}")
    width = {"gemma_2b": sizes.width, "gemma_300m": sizes.expert_width}
    monkeypatch.setattr(module, "get_gemma_config", lambda name: module.GemmaConfig(width[name], 0, 0, 0, 0, 0))
    core = tiny_lerobot_core(module, config)
    monkeypatch.setattr(module, "PaliGemmaWithExpertModel", lambda *args, **kwargs: core)
    side = sizes.image_size
    features = {name: PolicyFeature(FeatureType.VISUAL, (3, side, side)) for name in CAMERAS}
    features["observation.state"] = PolicyFeature(FeatureType.STATE, (config.state_dim,))
    config_class, policy_class = {
        "pi0": ("PI0Config", "PI0Policy"),
        "pi05": ("PI05Config", "PI05Policy"),
    }[sizes.variant]
    settings = getattr(module, config_class)(
        input_features=features, output_features={"action": PolicyFeature(FeatureType.ACTION, (config.action_dim,))},
        chunk_size=config.chunk_size, n_action_steps=config.chunk_size, max_state_dim=sizes.max_state_dim,
        max_action_dim=sizes.max_action_dim, image_resolution=(side, side), device="cpu",
    )  # fmt: skip
    return getattr(module, policy_class)(settings).eval()
