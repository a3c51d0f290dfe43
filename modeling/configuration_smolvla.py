"""Configuration of SmolVLA.

config.json holds only the sizes, from which transformers' Llama and SigLIP configurations are created at loading.
"""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig, SiglipVisionConfig

from .errors import UserError
from .strict_config import StrictConfig


@strict
class SmolVLAConfig(StrictConfig):
    """Configuration of SmolVLA (arXiv 2506.01844). The defaults are the sizes of the published smolvla_base."""

    model_type = "rocket_smolvla"
    sub_configs = {"language_config": LlamaConfig, "expert_config": LlamaConfig, "vision_config": SiglipVisionConfig}

    # The joint transformer: the first 16 of SmolVLM2-500M's 32 layers, and an expert of three quarters of their width.
    depth: int = 16
    heads: int = 15
    kv_heads: int = 5
    head_dim: int = 64
    width: int = 960
    mlp_width: int = 2560
    expert_width: int = 720
    expert_mlp_width: int = 2048
    vocab_size: int = 49280
    rms_norm_eps: float = 1e-5

    # In every n-th layer, from the first on, the expert attends to itself too; in the others only to the prefix.
    self_attention_every: int = 2

    # SmolVLM's vision tower is SigLIP-B/16. Each square of pixel_shuffle x pixel_shuffle patches becomes one image
    # token.
    vision_depth: int = 12
    vision_heads: int = 12
    vision_width: int = 768
    vision_mlp_width: int = 3072
    image_size: int = 512
    patch_size: int = 16
    pixel_shuffle: int = 4

    # Token ids before and after the image tokens of each camera; smolvla_base has none.
    image_start_ids: list[int] | tuple[int, ...] = ()
    image_end_ids: list[int] | tuple[int, ...] = ()

    # Hub id of the vision-language model, if lerobot's policy from which this one was converted named one.
    vlm_model_name: str | None = None

    # Shorter states and actions are padded with zeros to these widths, so that one checkpoint serves many robots.
    max_state_dim: int = 32
    max_action_dim: int = 32

    denoising_steps: int = 10

    def __post_init__(self, **kwargs: Any):
        self.language_config = self._llama_config(self.width, self.mlp_width)
        self.expert_config = self._llama_config(self.expert_width, self.expert_mlp_width)
        self.vision_config = SiglipVisionConfig(
            hidden_size=self.vision_width,
            intermediate_size=self.vision_mlp_width,
            num_hidden_layers=self.vision_depth,
            num_attention_heads=self.vision_heads,
            image_size=self.image_size,
            patch_size=self.patch_size,
        )
        super().__post_init__(**kwargs)

    def _llama_config(self, width: int, mlp_width: int) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=width,
            intermediate_size=mlp_width,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            rms_norm_eps=self.rms_norm_eps,
        )

    def validate_sizes(self) -> None:
        not_sizes = {"image_start_ids", "image_end_ids", "rms_norm_eps", "vlm_model_name"}
        self.check_sizes(*(self.declared_keys() - not_sizes))
        self.require_multiples(heads="kv_heads", vision_width="vision_heads")
        if self.image_size % (self.patch_size * self.pixel_shuffle):
            raise UserError(
                f"SmolVLAConfig.image_size={self.image_size} must be a multiple of "
                f"patch_size x pixel_shuffle={self.patch_size * self.pixel_shuffle}"
            )
        if not all(0 <= number < self.vocab_size for number in (*self.image_start_ids, *self.image_end_ids)):
            raise UserError(
                f"image_start_ids and image_end_ids must lie in 0..{self.vocab_size - 1}: "
                f"got {list(self.image_start_ids)} and {list(self.image_end_ids)}"
            )

    @property
    def image_grid(self) -> tuple[int, int]:
        """Rows and columns of the image tokens of one camera."""
        side = self.image_size // self.patch_size // self.pixel_shuffle
        return side, side

    def has_self_attention(self, index: int) -> bool:
        """Return whether the expert attends to itself in layer `index` (0-based)."""
        return index % self.self_attention_every == 0

    # Base of the rotary embedding of all layers. SmolVLM itself was trained with 100,000.
    rope_theta = 10_000.0

    # Limits for the robot; None means no limit.

    reads_state = draws_noise = True
    action_loss = "action/flow_matching"
    max_cameras = max_chunk_size = None

    # Defaults of the processor, as in lerobot

    resize = "letterbox-top-left"
    interpolation = "bilinear"
    prompt_template = "{task}\n"
    task_text = "unchanged"
    max_prompt_length = 48
