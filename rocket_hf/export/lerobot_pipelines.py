"""lerobot's processor pipelines for a policy: policy_preprocessor.json and policy_postprocessor.json.

lerobot's own steps normalize state and actions, with the statistics of the policy's processor. Images and prompt are
left to that processor, which lerobot_policy_rocket calls.
"""

import json
from pathlib import Path
from typing import Any

from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.processing_rocket import RocketProcessor

IMAGES, STATE, ACTION = "observation.images.", "observation.state", "action"
MODES = {"identity": "IDENTITY", "mean_std": "MEAN_STD", "min_max": "MIN_MAX", "quantile": "QUANTILES"}
FILES = ("policy_preprocessor.json", "policy_postprocessor.json")
# Statistics that leave a dimension unchanged, for masked dimensions: lerobot has no masks.
NEUTRAL = {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0, "q01": -1.0, "q99": 1.0}
EPSILON = 1e-8


def write_lerobot_pipelines(folder: Path, config: RocketConfig, processor: RocketProcessor) -> None:
    inputs, outputs = features(config)
    vectors = {name: feature for name, feature in inputs.items() if feature["type"] != "VISUAL"}
    mapping = normalization(config)
    statistics = statistics_of(processor)

    def normalization_step(name: str, covered: dict[str, Any]) -> dict[str, Any]:
        covered_statistics = {key: statistics[key] for key in covered}
        settings = {"eps": EPSILON, "features": covered, "norm_map": mapping, "stats": covered_statistics}
        return {"registry_name": name, "config": settings}

    to_device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
    preprocessor = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        to_device,
        normalization_step("normalizer_processor", vectors | outputs),
    ]
    postprocessor = [normalization_step("unnormalizer_processor", outputs), to_device]
    for file, steps in zip(FILES, (preprocessor, postprocessor), strict=True):
        content = {"name": file.removesuffix(".json"), "steps": steps}
        (folder / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def features(config: RocketConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the input and output features of a policy in lerobot's format."""
    side = config.policy_config.image_size
    inputs = {f"{IMAGES}{name}": {"type": "VISUAL", "shape": [3, side, side]} for name in config.cameras}
    inputs[STATE] = {"type": "STATE", "shape": [config.state_dim]}
    return inputs, {ACTION: {"type": "ACTION", "shape": [config.action_dim]}}


def normalization(config: RocketConfig) -> dict[str, str]:
    modes = {"STATE": config.state_normalization, "ACTION": config.action_normalization}
    return {"VISUAL": "IDENTITY"} | {part: MODES[mode] for part, mode in modes.items()}


def statistics_of(processor: RocketProcessor) -> dict[str, dict[str, list[float]]]:
    """Return the statistics by lerobot's feature name. Masked dimensions get statistics that leave them unchanged."""
    statistics: dict[str, dict[str, list[float]]] = {}
    for part, feature, dim in (("state", STATE, processor.state_dim), ("action", ACTION, processor.action_dim)):
        own = dict(processor.statistics.get(part, {}))
        mask = own.pop("mask", None) or [True] * dim
        statistics[feature] = {
            key: [value if is_normalized else NEUTRAL[key] for value, is_normalized in zip(values, mask, strict=True)]
            for key, values in own.items()
            if key in NEUTRAL
        }
    return statistics
