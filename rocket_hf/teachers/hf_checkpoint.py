"""Checkpoint folders of transformers vision encoders: a vision model, or the vision part of a vision-language model."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from rocket_hf.checkpoint_files import read_json
from rocket_hf.errors import UserError

from .teacher import TeacherCard

RgbValues = tuple[float, float, float]
# Keys of a larger model's configuration that hold the configuration of its vision encoder.
VISION_CONFIG_KEYS = ("vision_config", "backbone_config")
# Depth Anything prefixes the names of its encoder's tensors.
KEY_MAPPING = {r"^backbone\.": ""}
# Tensors behind the last block. A checkpoint may lack them because it was trained for another task.
OPTIONAL_PART = "pooler."


def load_vision_model(
    folder: Path, config: PreTrainedConfig, name: str, dtype: torch.dtype, device: torch.device
) -> tuple[PreTrainedModel, list[str]]:
    """Load the vision encoder. Also return the names of the checkpoint's tensors that are not part of it."""
    if (folder / "adapter_config.json").exists():  # transformers would load the model that this file names instead
        raise UserError(f"{name} cannot be a teacher: it is an adapter; merge it into its base model first")
    try:
        model, report = AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            key_mapping=KEY_MAPPING,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"the weights of {name} cannot be loaded as a {config.model_type}: {reason}") from error
    if missing := sorted(key for key in report["missing_keys"] if OPTIONAL_PART not in key):
        raise UserError(f"the weights of {name} lack {missing[0]} and {len(missing) - 1} more tensors")
    return model.to(device), sorted(report["unexpected_keys"])


def load_vision_config(folder: Path, name: str) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        kind = read_json(folder / "config.json")["model_type"]
        raise UserError(
            f"{name} has the model_type {kind!r}, which the installed transformers cannot load: upgrade transformers"
        ) from error
    values = config.to_dict()
    for key in VISION_CONFIG_KEYS:
        if values.get(key) is not None:
            return getattr(config, key)
    return config


def vision_card(config: PreTrainedConfig, folder: Path, name: str, weights: str, license: str) -> TeacherCard:
    values = config.to_dict()
    if missing := [key for key in ("num_hidden_layers", "hidden_size", "patch_size") if key not in values]:
        raise UserError(f"{name} cannot be a teacher: its configuration ({config.model_type}) has no {missing[0]}")
    if values.get("num_channels", 3) != 3:
        raise UserError(f"{name} cannot be a teacher: it expects {values['num_channels']} channels, and cameras have 3")
    patch = square_side(values["patch_size"], name, "patch_size")
    mean, std = read_pixel_statistics(folder, name)
    return TeacherCard(
        name=name,
        weights=weights,
        license=license,
        patch_size=patch,
        depth=values["num_hidden_layers"],
        width=values["hidden_size"],
        image_size=native_image_size(values, name, patch),
        mean=mean,
        std=std,
    )


def native_image_size(values: dict[str, Any], name: str, patch: int) -> int:
    """Return the side in pixels of the images that the encoder was trained on."""
    if "image_size" in values:
        return square_side(values["image_size"], name, "image_size")
    if "num_patches" in values:  # SigLIP 2 in its variant for any aspect ratio
        return patch * round(values["num_patches"] ** 0.5)
    raise UserError(f"{name} cannot be a teacher: its configuration has no image_size")


def square_side(value: Any, name: str, key: str) -> int:
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1:
        raise UserError(f"{name} cannot be a teacher: its {key} is {value}, and must be square")
    return int(sides.pop())


def read_pixel_statistics(folder: Path, name: str) -> tuple[RgbValues, RgbValues]:
    """Return the mean and deviation with which the encoder's image processor normalizes pixels in [0, 1]."""
    files = [folder / "preprocessor_config.json", folder / "processor_config.json"]
    settings: dict[str, Any] = next((read_json(path) for path in files if path.exists()), {})
    settings = settings.get("image_processor", settings)
    if "image_mean" not in settings or "image_std" not in settings:
        raise UserError(
            f"{name} cannot be a teacher: it has no preprocessor_config.json with image_mean and image_std, which are "
            "needed to normalize its pixels"
        )
    if not settings.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    (red, green, blue), (red_std, green_std, blue_std) = settings["image_mean"], settings["image_std"]
    return (red, green, blue), (red_std, green_std, blue_std)
