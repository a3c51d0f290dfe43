"""Contents of a policy folder besides the weights: configuration, processor, code, lerobot's files, and self-test."""

import inspect
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.dynamic_module_utils import get_relative_import_files

from rocket_hf.folder_lock import staged_folder
from rocket_hf.foreign_code import MODEL_CLASSES, PROCESSOR_CLASSES, ROCKET2_CLASSES
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.normalization import Normalizer
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.modeling.rocket2_self_test import (
    Rocket2Scenario,
    Rocket2SelfTest,
    changed_choices,
    input_effects,
    output_distances,
    run_scenario,
)
from rocket_hf.modeling.self_test import (
    SelfTest,
    library_versions,
    relative_distance,
    with_inverted_images,
)
from rocket_hf.modeling.strict_config import StrictConfig

# Names of lerobot's features, its normalization modes, and the files of its pipelines.
IMAGES, STATE, ACTION = "observation.images.", "observation.state", "action"
LEROBOT_MODES = {"identity": "IDENTITY", "mean_std": "MEAN_STD", "min_max": "MIN_MAX", "quantile": "QUANTILES"}
LEROBOT_FILES = ("policy_preprocessor.json", "policy_postprocessor.json")
LEROBOT_EPSILON = 1e-8
# Statistics that leave a dimension unchanged, for masked dimensions: lerobot has no masks.
NEUTRAL_STATISTICS = {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0, "q01": -1.0, "q99": 1.0}
TASK = "open the drawer"
IMAGE_SIZE = (96, 128)
PATCHES = (6, 8)  # rows and columns of an image's patches
# Rounding differs between machines, even in float32 (TensorFloat-32 convolutions). A tolerance is MARGIN times the
# deviation measured on this machine, and at least these fractions of the actions.
MIN_TOLERANCE = {"float32": 5e-3, "bfloat16": 5e-2}
MARGIN = 4
ENVIRONMENTS, STEPS, GOALS = 2, 6, 2
# Small deviations of the scores change some of the sampled choices. At least these fractions are tolerated.
MIN_CHANGED_CHOICES = {"float32": 0.1, "bfloat16": 0.5}


# Configuration, processor and code


def export_policy(model: RocketForActionPrediction, processor: RocketProcessor, folder: str | Path) -> Path:
    """Write a policy without its alignment head to `folder`, completely or not at all.

    `AutoModel.from_pretrained(folder, trust_remote_code=True)` loads it without this package.
    """
    with staged_folder(folder) as staging:
        policy = model.for_inference()
        policy.save_pretrained(staging)
        write_policy_files(staging, policy.config, processor)
    return Path(folder)


def write_policy_files(folder: Path, config: RocketConfig, processor: RocketProcessor) -> None:
    """Write all files besides the weights: configuration, processor, their code, and lerobot's processor pipelines."""
    write_config(folder, config, MODEL_CLASSES)
    write_processor(folder, processor)
    write_lerobot_pipelines(folder, config, processor)


def write_rocket2_files(folder: Path, config: Rocket2Config) -> None:
    """Write a ROCKET-2 policy's configuration and code. It has no processor, because it takes images unchanged."""
    write_config(folder, config, ROCKET2_CLASSES)
    copy_code(folder, ROCKET2_CLASSES)


def write_config(folder: Path, config: StrictConfig, classes: dict[str, str]) -> None:
    config.auto_map = dict(classes)
    config.architectures = [classes["AutoModel"].partition(".")[2]]
    config.save_pretrained(folder)


def write_processor(folder: Path, processor: RocketProcessor) -> None:
    processor.tokenizer.init_kwargs.pop("auto_map", None)  # of a foreign tokenizer; it would be saved and executed
    processor.auto_map = dict(PROCESSOR_CLASSES)
    try:
        processor.save_pretrained(folder)
    finally:
        del processor.auto_map
    copy_code(folder, MODEL_CLASSES | PROCESSOR_CLASSES)


def copy_code(folder: Path, classes: dict[str, str]) -> None:
    for path in shipped_files(classes):
        shutil.copy(path, folder / path.name)


def shipped_files(classes: dict[str, str] | None = None) -> list[Path]:
    """Return the files of `modeling` that are published with a policy: those that define `classes`, and their imports.

    `classes` is a value for `auto_map`; by default those of the VLA policies.
    """
    folder = Path(inspect.getfile(StrictConfig)).parent
    places = classes or MODEL_CLASSES | PROCESSOR_CLASSES
    entries = {folder / f"{place.partition('.')[0]}.py" for place in places.values()}
    return sorted(entries | {Path(file) for entry in entries for file in get_relative_import_files(entry)})


# lerobot's processor pipelines


def write_lerobot_pipelines(folder: Path, config: RocketConfig, processor: RocketProcessor) -> None:
    inputs, outputs = lerobot_features(config)
    vectors = {name: feature for name, feature in inputs.items() if feature["type"] != "VISUAL"}
    mapping = lerobot_normalization(config)
    statistics = lerobot_statistics(processor)

    def normalization_step(name: str, covered: dict[str, Any]) -> dict[str, Any]:
        covered_statistics = {key: statistics[key] for key in covered}
        settings = {"eps": LEROBOT_EPSILON, "features": covered, "norm_map": mapping, "stats": covered_statistics}
        return {"registry_name": name, "config": settings}

    to_device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
    preprocessor = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        to_device,
        normalization_step("normalizer_processor", vectors | outputs),
    ]
    postprocessor = [normalization_step("unnormalizer_processor", outputs), to_device]
    for file, steps in zip(LEROBOT_FILES, (preprocessor, postprocessor), strict=True):
        content = {"name": file.removesuffix(".json"), "steps": steps}
        (folder / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def lerobot_features(config: RocketConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the input and output features of a policy in lerobot's format."""
    side = config.policy_config.image_size
    inputs = {f"{IMAGES}{name}": {"type": "VISUAL", "shape": [3, side, side]} for name in config.cameras}
    inputs[STATE] = {"type": "STATE", "shape": [config.state_dim]}
    return inputs, {ACTION: {"type": "ACTION", "shape": [config.action_dim]}}


def lerobot_normalization(config: RocketConfig) -> dict[str, str]:
    modes = {"STATE": config.state_normalization, "ACTION": config.action_normalization}
    return {"VISUAL": "IDENTITY"} | {part: LEROBOT_MODES[mode] for part, mode in modes.items()}


def lerobot_statistics(processor: RocketProcessor) -> dict[str, dict[str, list[float]]]:
    """Return the statistics by lerobot's feature name. Masked dimensions get statistics that leave them unchanged."""
    statistics: dict[str, dict[str, list[float]]] = {}
    for part, feature, dim in (("state", STATE, processor.state_dim), ("action", ACTION, processor.action_dim)):
        own = dict(processor.statistics.get(part, {}))
        mask = own.pop("mask", None) or [True] * dim
        statistics[feature] = {
            key: [
                value if is_normalized else NEUTRAL_STATISTICS[key]
                for value, is_normalized in zip(values, mask, strict=True)
            ]
            for key, values in own.items()
            if key in NEUTRAL_STATISTICS
        }
    return statistics


# Self-tests


def record_self_test(
    trained: RocketForActionPrediction, published: RocketForActionPrediction, processor: RocketProcessor
) -> SelfTest:
    """Record the actions of `trained`. `published` is the same policy in the dtype of the published weights."""
    generator = torch.Generator().manual_seed(0)
    images = {name: to_pixels(draw_patches(1, 3, IMAGE_SIZE, generator)[0]) for name in processor.cameras}
    state = draw_state(processor, generator)
    batch = draw_batch(trained, processor(images=images, task=TASK, state=state), generator)
    actions = predict(trained, batch)
    cast = {dtype: cast_weights(published.for_inference(), getattr(torch, dtype)) for dtype in MIN_TOLERANCE}
    deviations = {dtype: relative_distance(predict(model, batch), actions) for dtype, model in cast.items()}
    return SelfTest(
        task=TASK,
        images=images,
        state=state,
        batch=batch,
        actions=actions,
        robot_actions=processor.unnormalize_actions(actions),
        tolerances={dtype: max(minimum, MARGIN * deviations[dtype]) for dtype, minimum in MIN_TOLERANCE.items()},
        image_effect=relative_distance(predict(trained, with_inverted_images(batch)), actions),
        versions=library_versions(),
    )


def draw_patches(count: int, channels: int, size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return images of coarse patches with values in [0, 1], (count, channels, *size).

    Resizing would remove the noise of single pixels.
    """
    patches = torch.rand(count, channels, *PATCHES, generator=generator)
    return torch.nn.functional.interpolate(patches, size=list(size), mode="bilinear")


def to_pixels(images: Tensor) -> Tensor:
    """Convert values in [0, 1] to uint8."""
    return (images * 255).round().to(torch.uint8)


def draw_state(processor: RocketProcessor, generator: torch.Generator) -> Tensor:
    """Return a state in robot units, well within the range of the statistics."""
    normalized = torch.rand(processor.state_dim, generator=generator) - 0.5
    statistics = processor.statistics.get("state", {})
    return Normalizer("state", processor.state_dim, processor.state_normalization, statistics).unnormalize(normalized)


def draw_batch(model: RocketForActionPrediction, inputs: dict, generator: torch.Generator) -> dict[str, Tensor]:
    batch = {**inputs, "images": to_pixels(inputs["images"])}
    policy = model.config.policy_config
    if policy.draws_noise:
        batch["noise"] = torch.randn(1, model.config.chunk_size, policy.max_action_dim, generator=generator)
    return batch


def predict(model: RocketForActionPrediction, batch: dict[str, Tensor]) -> Tensor:
    device = next(model.parameters()).device
    on_device: Any = {name: value.to(device) for name, value in batch.items()}
    return model.predict_action_chunk(**on_device).float().cpu()


def cast_weights[Policy: (RocketForActionPrediction, Rocket2ForActionPrediction)](
    policy: Policy, dtype: torch.dtype | None
) -> Policy:
    """Cast a policy, usually a copy for inference, in place; `dtype` None changes nothing.

    Weights that already have `dtype` stay shared with the original.
    """
    if dtype is not None and dtype != policy.dtype:
        weights: dict[str, Any] = {name: value.to(dtype) for name, value in policy.state_dict().items()}
        policy.load_state_dict(weights, strict=True, assign=True)
    return policy


def record_rocket2_self_test(
    trained: Rocket2ForActionPrediction, published: Rocket2ForActionPrediction
) -> Rocket2SelfTest:
    """Record the outputs of `trained`. `published` is the same policy, with the same heads, in the published dtype."""
    scenario = draw_scenario(trained.config)
    responses = run_scenario(trained, scenario)
    replayed = {
        dtype: run_scenario(cast_copy(published, getattr(torch, dtype)), scenario, responses.choices)
        for dtype in MIN_TOLERANCE
    }
    deviations = {dtype: max(output_distances(other, responses).values()) for dtype, other in replayed.items()}
    return Rocket2SelfTest(
        scenario=scenario,
        responses=responses,
        tolerances={dtype: max(minimum, MARGIN * deviations[dtype]) for dtype, minimum in MIN_TOLERANCE.items()},
        most_others={
            dtype: min(1.0, max(minimum, MARGIN * changed_choices(replayed[dtype], responses)))
            for dtype, minimum in MIN_CHANGED_CHOICES.items()
        },
        effects=input_effects(trained, scenario, responses, responses.choices),
        versions=library_versions(),
    )


def draw_scenario(config: Rocket2Config) -> Rocket2Scenario:
    generator = torch.Generator().manual_seed(0)

    def patches(channels: int, length: int) -> Tensor:
        drawn = draw_patches(ENVIRONMENTS * length, channels, config.image_size, generator)
        return drawn.unflatten(0, (ENVIRONMENTS, length))

    return Rocket2Scenario(
        images=to_pixels(patches(3, STEPS)),
        goal_images=to_pixels(patches(3, GOALS)),
        goal_masks=patches(1, GOALS)[:, :, 0] > 0.6,
        goal_interactions=torch.randint(0, config.interactions, (ENVIRONMENTS, GOALS), generator=generator),
    )


def cast_copy(policy: Rocket2ForActionPrediction, dtype: torch.dtype | None) -> Rocket2ForActionPrediction:
    return cast_weights(policy.for_inference(policy.config.auxiliary_heads), dtype)
