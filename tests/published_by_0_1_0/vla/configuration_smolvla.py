"""The sizes of SmolVLA, from which transformers' own Llama and SigLIP configurations are made.

Only the sizes are written to config.json, as for pi0.
"""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig, SiglipVisionConfig

from .strict_config import StrictConfig


@strict
class SmolVLAConfig(StrictConfig):
    """SmolVLA (arXiv 2506.01844). The defaults are the sizes of the published smolvla_base."""

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

    # In every n-th layer, from the first, the expert attends to itself too; in the others to the prefix alone.
    self_attention_every: int = 2

    # SmolVLM's tower is SigLIP-B/16; then each square of n x n patches becomes one image token.
    vision_depth: int = 12
    vision_heads: int = 12
    vision_width: int = 768
    vision_mlp_width: int = 3072
    image_size: int = 512
    patch_size: int = 16
    pixel_shuffle: int = 4

    # Vocabulary ids around the image tokens of each camera; smolvla_base has none.
    image_start_ids: list[int] | tuple[int, ...] = ()
    image_end_ids: list[int] | tuple[int, ...] = ()

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
            rms_norm_eps=1e-5,
        )

    def validate_sizes(self) -> None:
        self.require_positive(*(self.declared() - {"image_start_ids", "image_end_ids"}))
        self.require_multiples(heads="kv_heads", vision_width="vision_heads")
        if self.image_size % (self.patch_size * self.pixel_shuffle):
            raise ValueError(
                f"SmolVLAConfig.image_size={self.image_size} must be a multiple of "
                f"patch_size x pixel_shuffle={self.patch_size * self.pixel_shuffle}"
            )
        if not all(0 <= number < self.vocab_size for number in (*self.image_start_ids, *self.image_end_ids)):
            raise ValueError(
                f"image_start_ids and image_end_ids must lie in 0..{self.vocab_size - 1}: "
                f"{list(self.image_start_ids)}, {list(self.image_end_ids)}"
            )

    @property
    def image_grid(self) -> tuple[int, int]:
        """Rows and columns of the image tokens of one camera."""
        side = self.image_size // self.patch_size // self.pixel_shuffle
        return side, side

    def joins(self, index: int) -> bool:
        """Whether the expert attends to itself in this layer, counted from 0."""
        return index % self.self_attention_every == 0

    # SmolVLM was trained with rotary positions of base 100,000; SmolVLA turns all its layers by this one.
    rope_theta = 10_000.0

    # The robot's side: no limit on cameras, nor on the steps of a chunk.

    reads_state = draws_noise = True
    action_loss = "action/flow_matching"
    max_cameras = max_chunk_size = None

    # The processor's side.

    resize = "letterbox-top-left"
    prompt_template = "{task}\n"
    max_prompt_length = 48
