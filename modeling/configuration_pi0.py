"""Configuration of pi0 and pi0.5.

config.json holds only the sizes, from which transformers' Gemma and SigLIP configurations are created at loading. A
file that was saved under one version of transformers therefore means the same under another, and a language model and
an action expert always have the sizes that they need to attend together.
"""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import GemmaConfig, SiglipVisionConfig

from .strict_config import StrictConfig


@strict
class Pi0Config(StrictConfig):
    """Configuration of pi0 (arXiv 2410.24164) or pi0.5 (arXiv 2504.16054). The defaults are the published sizes.

    `variant` selects the policy: pi0 reads the robot's state through a token of the expert and mixes the flow time into
    the action tokens; pi0.5 reads the state, if at all, as text, and conditions the expert's norms on the time.
    """

    model_type = "rocket_pi0"
    sub_configs = {"language_config": GemmaConfig, "expert_config": GemmaConfig, "vision_config": SiglipVisionConfig}

    variant: Literal["pi0", "pi05"] = "pi0"

    # The joint transformer: a Gemma-2B language model and a 300M action expert that attend together, layer by layer.
    depth: int = 18
    heads: int = 8
    kv_heads: int = 1
    head_dim: int = 256
    width: int = 2048
    mlp_width: int = 16384
    expert_width: int = 1024
    expert_mlp_width: int = 4096
    vocab_size: int = 257152

    # SigLIP-So400m/14
    vision_depth: int = 27
    vision_heads: int = 16
    vision_width: int = 1152
    vision_mlp_width: int = 4304
    image_size: int = 224
    patch_size: int = 14

    # Shorter states and actions are padded with zeros to these widths, so that one checkpoint serves many robots.
    max_state_dim: int = 32
    max_action_dim: int = 32

    denoising_steps: int = 10

    def __post_init__(self, **kwargs: Any):
        self.language_config = self._gemma_config(self.width, self.mlp_width)
        self.expert_config = self._gemma_config(self.expert_width, self.expert_mlp_width)
        self.vision_config = SiglipVisionConfig(
            hidden_size=self.vision_width,
            intermediate_size=self.vision_mlp_width,
            num_hidden_layers=self.vision_depth,
            num_attention_heads=self.vision_heads,
            image_size=self.image_size,
            patch_size=self.patch_size,
        )
        super().__post_init__(**kwargs)

    def _gemma_config(self, width: int, mlp_width: int) -> GemmaConfig:
        return GemmaConfig(
            vocab_size=self.vocab_size,
            hidden_size=width,
            intermediate_size=mlp_width,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
        )

    def validate_sizes(self) -> None:
        self.check_sizes(*(self.declared_keys() - {"variant"}))
        self.require_multiples(heads="kv_heads", vision_width="vision_heads", image_size="patch_size")

    @property
    def image_grid(self) -> tuple[int, int]:
        """Rows and columns of the image tokens of one camera."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def reads_state(self) -> bool:
        return self.variant == "pi0"

    # Limits for the robot; None means no limit.

    draws_noise = True
    action_loss = "action/flow_matching"
    max_cameras = max_chunk_size = None

    # Defaults of the processor, as in lerobot

    resize = "letterbox"
    interpolation = "bilinear"

    @property
    def prompt_template(self) -> str:
        return "Task: {task}, State: {state};\nAction: " if self.variant == "pi05" else "{task}\n"

    @property
    def task_text(self) -> str:
        return "cleaned" if self.variant == "pi05" else "unchanged"

    @property
    def max_prompt_length(self) -> int:
        return 200 if self.variant == "pi05" else 48
