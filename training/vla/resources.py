"""What a run starts from: the policy's configuration, its datasets, the processor, the teacher; opened and checked."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from rocket_hf.checkpoint_files import read_json
from rocket_hf.errors import UserError
from rocket_hf.hub import POLICY_FILES, resolve
from rocket_hf.modeling.configuration_rocket import AlignmentConfig, RocketConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.modeling.robot_adaptation import config_for_robot
from rocket_hf.modeling.strict_config import StrictConfig
from rocket_hf.teachers.feature_cache import FeatureCache
from rocket_hf.teachers.license import license_note
from rocket_hf.teachers.load import DTYPES, load_teacher
from rocket_hf.teachers.registration import Registration

from ..data.dataset_statistics import compute_dataset_statistics
from ..data.lerobot_data import RobotDataset
from ..data.loader import common_image_sizes
from ..data.mixture import EvenlySpacedOrder, FrameRanges, MixtureOrder, split_episodes
from ..recipe import VLARecipe
from .targets import CachedTargets, LiveTargets, TargetSource, picture_windows

ARRANGED = ("prompt_template", "max_prompt_length", "resize")  # of a policy's processor, whatever the robot


@dataclass
class TrainingResources:
    folder: Path  # of the policy
    config: RocketConfig
    processor: RocketProcessor
    datasets: list[RobotDataset]
    order: MixtureOrder
    held_out: EvenlySpacedOrder | None
    caches: list[FeatureCache] | None
    targets: TargetSource | None
    notes: list[str]  # what the user should know before it starts


def load_training_resources(recipe: VLARecipe, device: torch.device) -> TrainingResources:
    folder = policy_folder(recipe.policy)
    config = policy_config(folder, recipe)
    datasets = [
        RobotDataset(dataset, config, recipe.data.streaming, recipe.data.in_memory) for dataset in recipe.data.datasets
    ]
    order, held_out = split(recipe, datasets)
    processor = robot_processor(folder, config, compute_dataset_statistics(datasets))
    check_prompts(processor, datasets)
    caches, targets, notes = open_targets(recipe, config, processor, datasets, device)
    if recipe.alignment is not None and targets is not None:
        config = RocketConfig.from_dict(config.to_dict(), alignment=alignment_config(recipe, targets.width))
    return TrainingResources(folder, config, processor, datasets, order, held_out, caches, targets, notes)


def policy_folder(
    name: str, kind: type[StrictConfig] = RocketConfig, files: Sequence[str] = ("config.json", "processor_config.json")
) -> Path:
    folder = resolve(name, POLICY_FILES).folder
    for file in files:
        if not (folder / file).is_file():
            raise UserError(f"{name} holds no policy: there is no {file}; `rocket-hf convert` makes one")
    found = dict(read_json(folder / "config.json")).get("model_type")
    if found != kind.model_type:
        raise UserError(f"config.json of {name} describes a model {found!r}: `rocket-hf convert` makes a policy of it")
    return folder


def policy_config(folder: Path, recipe: VLARecipe) -> RocketConfig:
    """The policy's own, with what the recipe says of the robot; its layers are checked against the recipe's."""
    config = config_for_robot(RocketConfig.from_pretrained(folder, alignment=None), robot_changes(recipe))
    if recipe.alignment is not None:
        RocketConfig.from_dict(config.to_dict(), alignment=alignment_config(recipe, 1))
    return config


def robot_changes(recipe: VLARecipe) -> dict[str, Any]:
    return {name: value for name, value in asdict(recipe.robot).items() if value is not None}


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


def split(recipe: VLARecipe, datasets: Sequence[RobotDataset]) -> tuple[MixtureOrder, EvenlySpacedOrder | None]:
    """The order of the frames to train on, and the frames to validate with."""
    data, seed = recipe.data, recipe.run.seed
    parts = [split_episodes(dataset.episodes, data.validation, seed) for dataset in datasets]
    training, held_out = (
        [
            FrameRanges([dataset.frame_range(episode) for episode in part[which]])
            for dataset, part in zip(datasets, parts, strict=True)
        ]
        for which in (0, 1)
    )
    order = MixtureOrder(training, [dataset.weight for dataset in data.datasets], seed)
    there = any(len(frames) for frames in held_out)
    return order, EvenlySpacedOrder(held_out, recipe.run.validation_samples) if there else None


def robot_processor(folder: Path, config: RocketConfig, statistics: dict) -> RocketProcessor:
    """The policy's tokenizer and prompt, with the statistics of the data that it will be trained on."""
    former = RocketProcessor.from_pretrained(folder)
    kept = {name: getattr(former, name) for name in ARRANGED}
    masks = {name: values["mask"] for name, values in former.statistics.items() if "mask" in values}
    statistics = {
        name: values | ({"mask": masks[name]} if len(masks.get(name, [])) == len(values["mean"]) else {})
        for name, values in statistics.items()
    }
    return RocketProcessor.for_config(config, former.tokenizer, statistics, **kept)


def check_prompts(processor: RocketProcessor, datasets: Sequence[RobotDataset]) -> None:
    """That each task's prompt fits, for it might be many steps until one comes that does not."""
    for dataset in datasets:
        tasks = [dataset.tasks[int(number)] for number in dataset.task_indices.unique()]
        states = torch.zeros(len(tasks), processor.state_dim)
        processor.encode_text(tasks, states)


def open_targets(
    recipe: VLARecipe,
    config: RocketConfig,
    processor: RocketProcessor,
    datasets: Sequence[RobotDataset],
    device: torch.device,
) -> tuple[list[FeatureCache] | None, TargetSource | None, list[str]]:
    alignment, teacher = recipe.alignment, recipe.teacher
    if alignment is None:
        return None, None, []
    sizes = list(common_image_sizes(datasets, config.cameras).values())
    grid = config.policy_config.image_grid
    registration = Registration(grid, picture_windows(processor, sizes), alignment.reference_compat)
    layers = list(dict.fromkeys(alignment.teacher_layers))
    if teacher.caches:
        caches = open_caches(recipe, datasets, layers)
        first = caches[0].manifest
        return (
            caches,
            CachedTargets(caches[0], registration, DTYPES[teacher.dtype]),
            [license_note(first.teacher, first.license), *(cache.scene_note for cache in caches)],
        )
    live = load_teacher(teacher.name, teacher.revision, teacher.resolution, teacher.dtype, device, teacher.compile)
    return None, LiveTargets(live, layers, registration), [license_note(live.card.name, live.card.license)]


def open_caches(recipe: VLARecipe, datasets: Sequence[RobotDataset], layers: list[int]) -> list[FeatureCache]:
    caches = []
    for folder, dataset in zip(recipe.teacher.caches, datasets, strict=True):
        keys = [key for key in dataset.camera_keys.values() if key]
        if len(keys) != len(dataset.camera_keys):
            raise UserError(
                f"the dataset {dataset.id} lacks a camera, so its features cannot come from {folder}: "
                "leave teacher.caches out"
            )
        cache = FeatureCache(folder, keys, layers)
        cache.check_dataset(dataset.id, dataset.revision, dataset.fingerprint)
        check_teacher(recipe.teacher.name, cache)
        caches.append(cache)
    first = caches[0].manifest
    for cache in caches[1:]:
        if (cache.grid, cache.storage, cache.width) != (caches[0].grid, caches[0].storage, caches[0].width):
            raise UserError(f"{cache.folder} and {caches[0].folder} differ in grid, storage or width: build them alike")
        if cache.manifest.weights != first.weights or cache.storage == "projected":
            raise UserError(
                f"{cache.folder} and {caches[0].folder} are of different teachers or projections: build them alike"
            )
    return caches


def check_teacher(name: str, cache: FeatureCache) -> None:
    known_as = Path(name).resolve().name if Path(name).is_dir() else name
    if known_as != cache.manifest.teacher:
        raise UserError(
            f"{cache.folder} holds features of {cache.manifest.teacher}, and the recipe's teacher is {name}: "
            f"pass --teacher {cache.manifest.teacher}, or the cache of the other"
        )


def load_policy(folder: Path, alignment: AlignmentConfig | None, recipe: VLARecipe) -> RocketForActionPrediction:
    """For the recipe's robot, with a fresh alignment head if there is one; what is new is drawn from its seed."""
    torch.manual_seed(recipe.run.seed)
    dtype = DTYPES[recipe.run.base_dtype]
    try:
        base = RocketForActionPrediction.from_pretrained(folder, alignment=alignment, dtype=dtype)
    except SafetensorError as error:
        raise UserError(f"the weights in {folder} cannot be read: {error}; copy them again") from error
    return base.for_robot(robot_changes(recipe))
