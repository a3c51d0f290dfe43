"""Upper limits of the sizes in a configuration.

A configuration may come from an unknown source. Without limits, one number in it could fill the memory or keep a
machine busy for days. The limits are far above the sizes of all public policies.
"""

from typing import Any

from .errors import UserError

MAX_LAYERS = 512
MAX_SIZES = dict.fromkeys(
    ("depth", "vision_depth", "dino_depth", "siglip_depth", "rgb_depth", "mask_depth", "spatial_layers",
     "temporal_layers", "action_head_blocks"),
    MAX_LAYERS,
) | {
    "vocab_size": 2**21,
    "base_vocab_size": 2**21,
    "denoising_steps": 1000,
    "chunk_size": 1024,
    "state_dim": 4096,
    "action_dim": 4096,
    "max_state_dim": 4096,
    "max_action_dim": 4096,
    "max_prompt_length": 4096,
    "image_size": 4096,
}  # fmt: skip
MAX_OTHER_SIZE = 2**17  # of widths and of everything else


def check_size(owner: str, name: str, value: Any, minimum: int = 1) -> None:
    """Raise `UserError` if a size is not an integer from `minimum` to its limit."""
    limit = MAX_SIZES.get(name, MAX_OTHER_SIZE)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"{owner}.{name} must be an integer, got {value!r}")
    if value < minimum:
        raise UserError(f"{owner}.{name} must be at least {minimum}, got {value}")
    if value > limit:
        raise UserError(f"{owner}.{name} must be at most {limit}, got {value}: check where this configuration is from")
