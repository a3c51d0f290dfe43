"""Numbers of attention heads, which cannot be inferred from the shapes of tensors, and epsilons of norms.

A wrong number still loads and silently changes the actions. It is therefore never guessed: it comes from --heads, from
a configuration of transformers that belongs to the checkpoint, or from a table of published models.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rocket_hf.errors import UserError

Configuration = Mapping[str, Any]

# Heads of the published models by width. All vision transformers in `VIT_HEADS` have heads of 64 dimensions.
VIT_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1536: 24}
SIGLIP_HEADS = {768: 12, 1024: 16, 1152: 16}
LLAMA_HEADS = {4096: 32}
SMOL_HEADS = {576: 9, 960: 15, 2048: 32}
# Defaults of transformers' LlamaConfig and SmolVLMVisionConfig, which configuration files leave out.
LLAMA_DEFAULTS = {"hidden_size": 4096, "num_attention_heads": 32, "rms_norm_eps": 1e-6}
SMOL_VISION_DEFAULTS = {"hidden_size": 1152, "num_attention_heads": 16, "layer_norm_eps": 1e-6}


def parse_heads(texts: Iterable[str], parts: tuple[str, ...]) -> dict[str, int]:
    """Parse values of --heads, such as `vision=16`. `parts` are the parts of the policy that it accepts."""
    heads: dict[str, int] = {}
    for text in texts:
        part, _, number = text.partition("=")
        if part not in parts:
            raise UserError(f"--heads {text}: this family has the parts {', '.join(parts)}, for example {parts[0]}=16")
        if not number.isdecimal() or int(number) < 1:
            raise UserError(f"--heads {text}: the number of heads must be a positive integer")
        heads[part] = int(number)
    return heads


@dataclass(frozen=True)
class HeadCounts:
    """Numbers of heads by part of the policy, as given with --heads."""

    given: dict[str, int] = field(default_factory=dict)

    def of(self, part: str, width: int, published: Mapping[int, int], stated: int | None = None) -> int:
        """Return the number of heads of a part.

        Args:
            part: Name of the part, as in --heads.
            width: Width of the part.
            published: Heads of published models of this part by width.
            stated: Number in the configuration that belongs to the checkpoint, if it has one.
        """
        heads = self.given.get(part) or stated or published.get(width)
        if heads is None:
            raise UserError(
                f"the number of attention heads of the part {part!r}, which is {width} wide, is not stated in the "
                f"checkpoint's configuration, and no published model has this width: pass --heads {part}=N"
            )
        return heads

    def of_tower(self, part: str, width: int, published: Mapping[int, int]) -> int:
        """Return the number of heads of a vision tower that no configuration describes."""
        heads = self.of(part, width, published)
        check_heads(part, heads, width)
        return heads


def check_heads(part: str, heads: int, width: int, key_width: int | None = None) -> int:
    """Return the dimension of one head; raise UserError if the projections cannot be divided into these heads.

    `width` is the width of the queries and `key_width` that of the keys, which may have fewer heads.
    """
    key_width, head_dim = width if key_width is None else key_width, width // heads
    if min(width, key_width) < 1 or width % heads or key_width % head_dim or heads % (key_width // head_dim):
        raise UserError(
            f"the part {part!r} cannot have {heads} attention heads: its queries are {width} wide and its keys "
            f"{key_width}; pass the right number with --heads {part}=N"
        )
    return head_dim


def stated_heads(config: Configuration, width: int, defaults: Mapping[str, Any]) -> int | None:
    """Return the number of heads that the configuration of a part of this width states, or None if it states none.

    A file without this number means the default of its class, but only if its width is that of the tensors.
    """
    if config.get("hidden_size", defaults["hidden_size"] if "num_attention_heads" not in config else width) != width:
        return None
    heads = config.get("num_attention_heads", defaults["num_attention_heads"])
    if not isinstance(heads, int) or heads < 1:
        raise UserError(f"num_attention_heads is {heads!r} in the configuration, expected a positive integer")
    return heads


def stated_number(config: Configuration, key: str, default: float) -> float:
    value = config.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise UserError(f"{key} is {value!r} in the checkpoint's configuration, expected a positive number")
    return float(value)
