"""A vision encoder of transformers from its folder: alone, or the vision part of a model of pictures and text."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from rocket_hf.checkpoint_files import read_json
from rocket_hf.errors import UserError

from .teacher import TeacherCard

Color = tuple[float, float, float]
# Where the configuration of a larger model has that of its vision encoder.
PARTS = ("vision_config", "backbone_config")
# How the tensors of Depth Anything are named beside those of its encoder alone.
RENAMED = {r"^backbone\.": ""}
# What comes after the last block, and that a checkpoint may lack because it was trained for something else.
UNUSED = "pooler."


def load_vision_model(
    folder: Path, config: PreTrainedConfig, name: str, dtype: torch.dtype, device: torch.device
) -> tuple[PreTrainedModel, list[str]]:
    """The encoder, and the names of the tensors that are no part of it."""
    try:
        model, report = AutoModel.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, key_mapping=RENAMED, output_loading_info=True
        )
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"the weights of {name} cannot be read as a {config.model_type}: {reason}") from error
    if missing := sorted(key for key in report["missing_keys"] if UNUSED not in key):
        raise UserError(f"the weights of {name} lack {missing[0]} and {len(missing) - 1} more tensors")
    return model.to(device), sorted(report["unexpected_keys"])


def vision_config(folder: Path, name: str) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError) as error:
        kind = read_json(folder / "config.json")["model_type"]
        raise UserError(f"{name} is a {kind!r}, an architecture that this transformers does not know") from error
    values = config.to_dict()
    for part in PARTS:
        if values.get(part) is not None:
            return getattr(config, part)
    return config


def vision_card(config: PreTrainedConfig, folder: Path, name: str, weights: str, license: str) -> TeacherCard:
    values = config.to_dict()
    if lacking := [key for key in ("num_hidden_layers", "hidden_size", "patch_size") if key not in values]:
        raise UserError(f"{name} cannot be a teacher: its configuration ({config.model_type}) has no {lacking[0]}")
    if values.get("num_channels", 3) != 3:
        raise UserError(f"{name} sees {values['num_channels']} channels, and cameras have 3")
    patch = one_side(values["patch_size"], name, "patch_size")
    mean, std = pixel_statistics(folder, name)
    return TeacherCard(
        name=name,
        weights=weights,
        license=license,
        patch_size=patch,
        depth=values["num_hidden_layers"],
        width=values["hidden_size"],
        image_size=image_size(values, name, patch),
        mean=mean,
        std=std,
    )


def image_size(values: dict[str, Any], name: str, patch: int) -> int:
    if "image_size" in values:
        return one_side(values["image_size"], name, "image_size")
    if "num_patches" in values:  # SigLIP 2's tower for pictures of any aspect
        return patch * round(values["num_patches"] ** 0.5)
    raise UserError(f"the configuration of {name} has no image_size")


def one_side(value: Any, name: str, key: str) -> int:
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1:
        raise UserError(f"{key} of {name} is {value}: a teacher's must be square")
    return int(sides.pop())


def pixel_statistics(folder: Path, name: str) -> tuple[Color, Color]:
    """The mean and deviation by which its own image processor normalizes pixels in [0, 1]."""
    files = [folder / "preprocessor_config.json", folder / "processor_config.json"]
    settings: dict[str, Any] = next((read_json(path) for path in files if path.exists()), {})
    settings = settings.get("image_processor", settings)
    if "image_mean" not in settings or "image_std" not in settings:
        raise UserError(f"{name} has no preprocessor_config.json that says how its pixels are normalized")
    if not settings.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    (red, green, blue), (of_red, of_green, of_blue) = settings["image_mean"], settings["image_std"]
    return (red, green, blue), (of_red, of_green, of_blue)
