"""Configuration of OpenVLA and OpenVLA-OFT.

config.json holds only the sizes, from which transformers' Llama configuration is created at loading. A file that was
saved under one version of transformers therefore means the same under another.
"""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig

from .errors import UserError
from .strict_config import StrictConfig


@strict
class OpenVLAPolicyConfig(StrictConfig):
    """Configuration of OpenVLA (arXiv 2406.09246) or OpenVLA-OFT (arXiv 2502.19645).

    The defaults are the sizes of openvla-7b. `variant` selects the policy: "openvla" generates one action as tokens,
    one after the other, from one camera; "oft" predicts a whole action chunk in one pass, from up to four cameras and
    the robot's state.
    """

    model_type = "rocket_openvla"
    sub_configs = {"language_config": LlamaConfig}

    variant: Literal["oft", "openvla"] = "oft"

    # Llama-2 7B
    depth: int = 32
    heads: int = 32
    kv_heads: int = 32
    width: int = 4096
    mlp_width: int = 11008
    vocab_size: int = 32064
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    # DINOv2-L/14 with registers and SigLIP-So400m/14. The depths include the last block, whose output is not used.
    dino_depth: int = 24
    dino_heads: int = 16
    dino_width: int = 1024
    dino_mlp_width: int = 4096
    dino_registers: int = 4
    siglip_depth: int = 27
    siglip_heads: int = 16
    siglip_width: int = 1152
    siglip_mlp_width: int = 4304
    image_size: int = 224
    patch_size: int = 14

    # Tokens: the action bins are the last ids before the padding of the vocabulary; prompts end with the empty token.
    base_vocab_size: int = 32000
    action_bins: int = 256
    empty_token_id: int = 29871
    end_token_id: int = 2

    # OFT's regression head
    action_head_width: int = 4096
    action_head_blocks: int = 2

    # The public code reads its image tokens one position too late: without each sample's first patch and with the token
    # after the last one. Set this only to compare with features, probes or projectors of the public code.
    reference_compat_token_shift: bool = False

    def __post_init__(self, **kwargs: Any):
        self.language_config = LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.width,
            intermediate_size=self.mlp_width,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            rms_norm_eps=self.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
        )
        super().__post_init__(**kwargs)

    def validate_sizes(self) -> None:
        may_be_zero = {"dino_registers", "empty_token_id", "end_token_id", "action_head_blocks"}
        not_sizes = {"variant", "rms_norm_eps", "rope_theta", "reference_compat_token_shift"}
        self.check_sizes(*(self.declared_keys() - may_be_zero - not_sizes))
        self.check_sizes("dino_registers", "action_head_blocks", minimum=0)
        self.require_multiples(
            heads="kv_heads", dino_width="dino_heads", siglip_width="siglip_heads", image_size="patch_size"
        )
        for tower in ("dino", "siglip"):
            if getattr(self, f"{tower}_depth") < 2:
                raise UserError(f"OpenVLAPolicyConfig.{tower}_depth must be at least 2: the last block is not used")

    def validate_tokens(self) -> None:
        if not 2 <= self.action_bins <= self.base_vocab_size <= self.vocab_size:
            raise UserError(
                "OpenVLAPolicyConfig needs 2 <= action_bins <= base_vocab_size <= vocab_size, got "
                f"{self.action_bins}, {self.base_vocab_size}, {self.vocab_size}"
            )
        for token in ("empty_token_id", "end_token_id"):
            if not 0 <= getattr(self, token) < self.vocab_size:
                raise UserError(f"OpenVLAPolicyConfig.{token}={getattr(self, token)} is not in the vocabulary")

    @property
    def image_grid(self) -> tuple[int, int]:
        """Rows and columns of the image tokens of one camera."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def reads_state(self) -> bool:
        return self.variant == "oft"

    # Limits for the robot; None means no limit.

    draws_noise = False
    max_state_dim = max_action_dim = None

    @property
    def max_cameras(self) -> int | None:
        return 1 if self.variant == "openvla" else None

    @property
    def max_chunk_size(self) -> int | None:
        return 1 if self.variant == "openvla" else None

    @property
    def action_loss(self) -> str:
        return "action/l1" if self.variant == "oft" else "action/cross_entropy"

    # Defaults of the processor, as in the public code

    resize = "stretch"
    interpolation = "bicubic"
    prompt_template = "In: What action should the robot take to {task_lower}?\nOut:"
    task_text = "unchanged"
    max_prompt_length = 64
