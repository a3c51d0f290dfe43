"""Folder of SmolVLA's vision-language model with the configuration, processor and tokenizer that lerobot reads.

lerobot takes from it the sizes of the modules and the tokenizer, but no weights.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedTokenizerBase

from rocket_hf.checkpoint_files import json_value, read_json_object
from rocket_hf.errors import UserError
from rocket_hf.files import write_json
from rocket_hf.hub import REPO_ID, resolve
from rocket_hf.modeling.configuration_smolvla import SmolVLAConfig

from .head_counts import LLAMA_DEFAULTS, SMOL_VISION_DEFAULTS, Configuration, stated_heads, stated_number

DEFAULT_NORM_EPS = 1e-5  # of all published versions of SmolVLM2
UNUSED_TOKEN = "<unk>"
SPECIAL_TOKENS = {
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "image_token": "<image>",
}


@dataclass(frozen=True)
class SmolVLMSettings:
    """Settings of a vision-language model that do not follow from tensors. They are empty if unknown."""

    text: Configuration = field(default_factory=dict)
    vision: Configuration = field(default_factory=dict)

    def check_widths(self, width: int, vision_width: int, vlm: str | None) -> None:
        """Raise UserError if these are the settings of `vlm`, which the user named, and describe other widths."""
        if vlm and (self.language_heads(width) is None or self.vision_heads(vision_width) is None):
            raise UserError(
                f"the vision-language model {vlm} is not that of the checkpoint, whose language model is {width} wide "
                f"and whose vision tower is {vision_width} wide: pass another one with --vlm"
            )

    @classmethod
    def read(cls, folder: Path) -> "SmolVLMSettings":
        path = folder / "config.json"
        content = read_json_object(path)
        settings = cls(json_value(content, "text_config", path, dict), json_value(content, "vision_config", path, dict))
        if stated_number(settings.vision, "layer_norm_eps", 1e-6) != 1e-6:
            raise UserError(f"{path} sets layer_norm_eps={settings.vision['layer_norm_eps']}; only 1e-06 is supported")
        return settings

    def language_heads(self, width: int) -> int | None:
        return stated_heads(self.text, width, LLAMA_DEFAULTS) if self.text else None

    def vision_heads(self, width: int) -> int | None:
        return stated_heads(self.vision, width, SMOL_VISION_DEFAULTS) if self.vision else None

    def norm_eps(self, width: int) -> float:
        """Return the epsilon of the norms of the language model and the expert."""
        if self.language_heads(width) is None:
            return DEFAULT_NORM_EPS
        return stated_number(self.text, "rms_norm_eps", LLAMA_DEFAULTS["rms_norm_eps"])


def read_smolvlm_settings(policy: dict[str, Any], vlm: str | None) -> SmolVLMSettings:
    """Return the settings of the vision-language model `vlm`, or else of the one that lerobot's policy names.

    Only `vlm`, a folder or Hub id, is downloaded. The other one is read if it is on this machine: it is needed only for
    models that are not published.
    """
    if vlm:
        folder = resolve(vlm, ["config.json"], kind="vision-language model", ignore_code=True).folder
        return SmolVLMSettings.read(folder)
    name = policy.get("vlm_model_name")
    if not isinstance(name, str) or not name:
        return SmolVLMSettings()
    if (Path(name) / "config.json").is_file():
        return SmolVLMSettings.read(Path(name))
    cached = try_to_load_from_cache(name, "config.json") if REPO_ID.fullmatch(name) else None
    return SmolVLMSettings.read(Path(cached).parent) if isinstance(cached, str) else SmolVLMSettings()


def write_smolvlm_folder(folder: Path, policy: SmolVLAConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write what lerobot reads of the vision-language model, made from the sizes and the tokenizer of a policy."""
    folder.mkdir()
    tokenizer.save_pretrained(folder)
    vocabulary = tokenizer.get_vocab()
    # lerobot asks the tokenizer for the ids of these tokens, also for policies that do not use them.
    tokens = {name: token if token in vocabulary else UNUSED_TOKEN for name, token in SPECIAL_TOKENS.items()}
    path = folder / "tokenizer_config.json"
    write_json(path, read_json_object(path) | {"extra_special_tokens": tokens})
    write_json(folder / "config.json", smolvlm_config(policy, vocabulary.get(SPECIAL_TOKENS["image_token"], 0)))
    # The processor of Idefics3 has the same tokenizer as SmolVLM's, and needs no package for videos or numerals.
    processor = {"processor_class": "Idefics3Processor", "image_processor": {"image_processor_type": IMAGE_PROCESSOR}}
    write_json(folder / "processor_config.json", processor)


def smolvlm_config(policy: SmolVLAConfig, image_token: int) -> dict[str, Any]:
    """Return the content of config.json for transformers' SmolVLMForConditionalGeneration."""
    text = policy.language_config.to_dict()
    vision = {
        "hidden_size": policy.vision_width,
        "intermediate_size": policy.vision_mlp_width,
        "num_hidden_layers": policy.vision_depth,
        "num_attention_heads": policy.vision_heads,
        "image_size": policy.image_size,
        "patch_size": policy.patch_size,
    }
    return {
        "model_type": "smolvlm",
        "architectures": ["SmolVLMForConditionalGeneration"],
        "text_config": text,
        "vision_config": vision,
        "scale_factor": policy.pixel_shuffle,
        "image_token_id": image_token,
        "pad_token_id": None,
    }


IMAGE_PROCESSOR = "Idefics3ImageProcessor"
