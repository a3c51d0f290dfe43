"""Resources of a VLA run, opened and checked: policy configuration, datasets, processor, teacher or feature caches."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket import AlignmentConfig, RocketConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import POLICY_SETTINGS, RocketProcessor
from rocket_hf.modeling.robot_adaptation import config_for_robot
from rocket_hf.teachers.cache_manifest import Manifest
from rocket_hf.teachers.feature_cache import FeatureCache
from rocket_hf.teachers.license import license_note
from rocket_hf.teachers.load import DTYPES, load_teacher
from rocket_hf.teachers.registration import Registration
from rocket_hf.teachers.scene import scene_size
from rocket_hf.teachers.teacher import Grid

from ..base_policy import find_policy_folder
from ..data.baselines import validation_baselines
from ..data.dataset_statistics import compute_dataset_statistics, unit_differences
from ..data.frame_table import MixtureEntry
from ..data.image_resizer import ImageResizer
from ..data.lerobot_data import RobotDataset
from ..data.loader import FeatureReader, common_image_sizes
from ..data.mixture import EvenlySpacedOrder, FrameRanges, MixtureOrder, split_episodes
from ..input_fingerprints import Fingerprints, dataset_fingerprints, policy_fingerprints, statistics_values
from ..recipe import DataConfig, TeacherSettings, VLARecipe
from .layers_by_depth import OTHER_CHOICE
from .robot import robot_changes
from .shuffled_features import shuffle_features
from .targets import CachedTargets, LiveTargets, PositionTargets, TargetSource, image_windows


@dataclass
class TrainingResources:
    folder: Path  # of the policy
    config: RocketConfig
    processor: RocketProcessor
    datasets: list[RobotDataset]
    order: MixtureOrder
    held_out: EvenlySpacedOrder | None
    caches: list[FeatureCache] | None
    feature_readers: Sequence[FeatureReader] | None  # the caches, or readers that shuffle their frames
    targets: TargetSource | None
    notes: list[str]  # facts that the user should know before training starts


def load_training_resources(recipe: VLARecipe, device: torch.device) -> TrainingResources:
    folder = find_policy_folder(recipe.policy)
    config = policy_config(folder, recipe)
    resizer = create_image_resizer(recipe, folder, config)
    datasets = open_datasets(recipe.data, config, resizer)
    order, held_out = split_frames(recipe, datasets)
    processor = create_processor(folder, config, compute_dataset_statistics(datasets))
    check_prompt_lengths(processor, datasets)
    caches, targets, notes = create_targets(recipe, config, processor, datasets, device)
    readers: Sequence[FeatureReader] | None = caches
    if caches is not None and recipe.teacher.targets == "shuffled":
        readers = shuffle_features(caches, datasets, recipe.run.seed)
    notes += [*unit_notes(config, datasets), *baseline_notes(recipe, datasets, held_out)]
    if recipe.alignment is not None and targets is not None:
        config = RocketConfig.from_dict(config.to_dict(), alignment=alignment_config(recipe, targets.width))
    return TrainingResources(folder, config, processor, datasets, order, held_out, caches, readers, targets, notes)


def resource_fingerprints(recipe: VLARecipe, resources: TrainingResources) -> Fingerprints:
    fingerprints = dataset_fingerprints(recipe) | policy_fingerprints(recipe.policy, resources.folder)
    fingerprints["the normalization statistics"] = statistics_values(resources.processor.statistics)
    for cache in resources.caches or []:
        fingerprints[f"the feature cache {cache.folder}"] = {"manifest.json": cache.manifest.fingerprint}
    if isinstance(resources.targets, LiveTargets):
        card = resources.targets.teacher.card
        fingerprints[f"the teacher {card.name}"] = {"weights": card.weights}
    return fingerprints


# Policy and processor


def policy_config(folder: Path, recipe: VLARecipe) -> RocketConfig:
    """Return the policy's configuration for the recipe's robot; check the aligned layers against its depth."""
    config = config_for_robot(RocketConfig.from_pretrained(folder, alignment=None), robot_changes(recipe))
    if recipe.alignment is not None:
        RocketConfig.from_dict(config.to_dict(), alignment=alignment_config(recipe, 1))
    return config


def alignment_config(recipe: VLARecipe, target_width: int) -> AlignmentConfig:
    alignment = recipe.alignment
    assert alignment is not None
    return AlignmentConfig(
        student_layers=alignment.student_layers,
        teacher_layers=alignment.teacher_layers,
        projector=alignment.projector,
        nesting=alignment.nesting,
        nested_widths=alignment.nested_widths,
        hidden_width=alignment.hidden_width or max([target_width, *(alignment.nested_widths or [])]),
        target_width=target_width,
        weight=alignment.weight,
    )


def create_processor(folder: Path, config: RocketConfig, statistics: dict) -> RocketProcessor:
    """Create a processor with the policy's tokenizer and prompt and the statistics of the training data."""
    policy_processor = RocketProcessor.from_pretrained(folder)
    settings = {name: getattr(policy_processor, name) for name in POLICY_SETTINGS}
    masks = {name: values["mask"] for name, values in policy_processor.statistics.items() if "mask" in values}
    statistics = {
        name: values | ({"mask": masks[name]} if len(masks.get(name, [])) == len(values["mean"]) else {})
        for name, values in statistics.items()
    }
    return RocketProcessor.for_config(config, policy_processor.tokenizer, statistics, **settings)


def load_policy(folder: Path, alignment: AlignmentConfig | None, recipe: VLARecipe) -> RocketForActionPrediction:
    """Load the policy for the recipe's robot. New layers and the alignment head are drawn from the recipe's seed."""
    torch.manual_seed(recipe.run.seed)
    dtype = DTYPES[recipe.run.base_dtype]
    base = RocketForActionPrediction.from_pretrained(folder, alignment=alignment, dtype=dtype)
    return base.for_robot(robot_changes(recipe))


# Data


def open_datasets(data: DataConfig, config: RocketConfig, resizer: ImageResizer | None = None) -> list[RobotDataset]:
    """Open the datasets of a recipe, with the rate and the dimensions of the mixture."""
    pads = len(data.datasets) > 1
    return [
        RobotDataset(
            dataset, config, data.streaming, data.in_memory, resizer, MixtureEntry(number, data.resample, pads)
        )
        for number, dataset in enumerate(data.datasets)
    ]


def unit_notes(config: RocketConfig, datasets: Sequence[RobotDataset]) -> list[str]:
    """Return a note if a dimension seems to have other units in one dataset of a mixture than in another."""
    found = unit_differences(datasets, {"state": config.state_names, "action": config.action_names})
    if not found:
        return []
    return [f"standard deviations differ widely between datasets, check that their units are equal: {'; '.join(found)}"]


def create_image_resizer(recipe: VLARecipe, folder: Path, config: RocketConfig) -> ImageResizer | None:
    """Return the resizer of large images; None if a teacher reads the images in the size of the cameras."""
    if recipe.alignment is not None and runs_teacher(recipe.teacher):
        return None
    return ImageResizer.for_processor(RocketProcessor.from_pretrained(folder), config.policy_config.image_size)


def split_frames(recipe: VLARecipe, datasets: Sequence[RobotDataset]) -> tuple[MixtureOrder, EvenlySpacedOrder | None]:
    """Return the order of the training frames, and the frames of the held-out episodes, if there are any."""
    data, seed = recipe.data, recipe.run.seed
    splits = split_datasets(recipe, datasets)
    training, held_out = (
        [
            FrameRanges([dataset.frame_range(episode) for episode in split[part]])
            for dataset, split in zip(datasets, splits, strict=True)
        ]
        for part in (0, 1)
    )
    order = MixtureOrder(training, [dataset.weight for dataset in data.datasets], seed)
    has_held_out = any(len(frames) for frames in held_out)
    return order, EvenlySpacedOrder(held_out, recipe.run.validation_samples) if has_held_out else None


def split_datasets(recipe: VLARecipe, datasets: Sequence[RobotDataset]) -> list[tuple[list[int], list[int]]]:
    """Return the training episodes and the held-out episodes of each dataset."""
    return [split_episodes(dataset.episodes, recipe.data.validation, recipe.run.seed) for dataset in datasets]


def baseline_notes(
    recipe: VLARecipe, datasets: Sequence[RobotDataset], held_out: EvenlySpacedOrder | None
) -> list[str]:
    """Return a note with the validation errors of two baselines, which give the policy's validation error a scale."""
    if held_out is None:
        return []
    training = [training for training, _ in split_datasets(recipe, datasets)]
    errors = validation_baselines(datasets, training, held_out)
    listed = ", ".join(f"{name} {error:.4g}" for name, error in errors.items())
    return [f"validation error of baselines: {listed} robot units"]


def check_prompt_lengths(processor: RocketProcessor, datasets: Sequence[RobotDataset]) -> None:
    """Tokenize the prompt of every task once, so that one that is too long fails before training starts."""
    for dataset in datasets:
        tasks = [dataset.tasks[int(number)] for number in dataset.task_indices.unique()]
        states = torch.zeros(len(tasks), processor.state_dim)
        processor.encode_text(tasks, states)


# Teacher and feature caches


def runs_teacher(teacher: TeacherSettings) -> bool:
    """Return whether the teacher runs in each training step."""
    return teacher.targets != "position" and not teacher.caches


def create_targets(
    recipe: VLARecipe,
    config: RocketConfig,
    processor: RocketProcessor,
    datasets: Sequence[RobotDataset],
    device: torch.device,
) -> tuple[list[FeatureCache] | None, TargetSource | None, list[str]]:
    """Return the feature caches, the source of the alignment targets, and notes; nothing without alignment."""
    alignment, teacher = recipe.alignment, recipe.teacher
    if alignment is None:
        return None, None, []
    sizes = list(common_image_sizes(datasets, config.cameras).values())
    grid = config.policy_config.image_grid
    windows = image_windows(processor, sizes)
    registration = Registration(grid, windows, alignment.reference_compat, alignment.normalize_targets)
    layers = list(dict.fromkeys(alignment.teacher_layers))
    if teacher.targets == "position":
        return None, PositionTargets(*read_teacher_shape(teacher, sizes), layers, registration), []
    if teacher.caches:
        caches = open_caches(recipe, datasets, layers)
        manifest = caches[0].manifest
        targets = CachedTargets(caches[0], registration, DTYPES[teacher.dtype])
        return caches, targets, [license_note(manifest.teacher, manifest.license), *(c.scene_note for c in caches)]
    live = load_teacher(teacher.name, teacher.revision, teacher.resolution, teacher.dtype, device, teacher.compile)
    return None, LiveTargets(live, layers, registration), [license_note(live.card.name, live.card.license)]


def read_teacher_shape(teacher: TeacherSettings, sizes: Sequence[tuple[int, int]]) -> tuple[int, Grid]:
    """Return the width and the grid of a teacher's features from its cache or its configuration."""
    if teacher.caches:
        manifest = Manifest.load(Path(teacher.caches[0]))
        return manifest.channels, manifest.grid
    model = load_teacher(teacher.name, teacher.revision, teacher.resolution, device="meta")
    return model.card.width, model.grid(*scene_size(sizes, model))


def open_caches(recipe: VLARecipe, datasets: Sequence[RobotDataset], layers: list[int]) -> list[FeatureCache]:
    """Open one feature cache per dataset; check that each fits its dataset and all fit together."""
    caches = []
    for folder, dataset in zip(recipe.teacher.caches, datasets, strict=True):
        keys = [key for key in dataset.camera_keys.values() if key]
        if len(keys) != len(dataset.camera_keys):
            raise UserError(
                f"the dataset {dataset.id} lacks a camera of the policy, so the feature cache {folder} cannot be used: "
                "remove teacher.caches to run the teacher instead"
            )
        check_cached_layers(folder, layers)
        cache = FeatureCache(folder, keys, layers)
        cache.check_dataset(dataset.id, dataset.revision, dataset.fingerprint)
        check_teacher(recipe.teacher.name, cache)
        caches.append(cache)
    first = caches[0]
    for cache in caches[1:]:
        if (cache.grid, cache.storage, cache.width) != (first.grid, first.storage, first.width):
            raise UserError(
                f"{cache.folder} and {first.folder} differ in grid, storage or width: build both with the same options"
            )
        if cache.manifest.weights != first.manifest.weights or cache.storage == "projected":
            raise UserError(
                f"{cache.folder} and {first.folder} contain features of different teachers or projections: build both "
                "with the same teacher, and not with --storage projected"
            )
    return caches


def check_cached_layers(folder: str, layers: list[int]) -> None:
    """Raise a UserError that names the recipe key if a feature cache lacks a teacher layer."""
    manifest = Manifest.load(Path(folder))
    missing = [layer for layer in layers if manifest.layer_index(layer) is None]
    if missing:
        stored, needed = (",".join(map(str, numbers)) for numbers in (manifest.layers, layers))
        raise UserError(
            f"alignment.teacher_layers: the feature cache {folder} has no teacher layer {missing[0]}, it has {stored} "
            f"of {manifest.teacher}: build another one with `rocket-hf cache build --layers {needed}`, "
            f"or {OTHER_CHOICE}"
        )


def check_teacher(name: str, cache: FeatureCache) -> None:
    teacher = Path(name).resolve().name if Path(name).is_dir() else name
    if teacher != cache.manifest.teacher:
        raise UserError(
            f"{cache.folder} contains features of {cache.manifest.teacher}, but the recipe's teacher is {name}: "
            f"pass --teacher {cache.manifest.teacher}, or the cache of the recipe's teacher"
        )
