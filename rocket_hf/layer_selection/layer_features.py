"""Extraction of all layers of a policy and a teacher from frames of a dataset, batch by batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.policy_interface import Batch
from rocket_hf.teachers.cache_manifest import Manifest
from rocket_hf.teachers.load import load_teacher
from rocket_hf.teachers.teacher import Resolution
from rocket_hf.training.base_policy import find_policy_folder
from rocket_hf.training.data.loader import BatchLoader, make_loader
from rocket_hf.training.data.robot_from_dataset import read_robot_from_dataset
from rocket_hf.training.recipe import (
    AlignmentSettings,
    DataConfig,
    DatasetConfig,
    RobotConfig,
    RunConfig,
    TeacherSettings,
    VLARecipe,
)
from rocket_hf.training.vla.model_inputs import ModelInputs
from rocket_hf.training.vla.resources import TrainingResources, load_policy, load_training_resources
from rocket_hf.training.vla.targets import Targets

from .by_measure import LayerBatch


@dataclass
class MeasurementConfig:
    """Models, dataset and loading options of a measurement."""

    policy: str
    dataset: str
    teacher: str | None  # None if only the student is measured
    resolution: Resolution
    dtype: str
    samples: int
    batch_size: int
    workers: int
    cache: Path | None = None  # feature cache of the dataset with all layers of the teacher; without, the teacher runs


class LayerMeasure(Protocol):
    @property
    def sums(self) -> Tensor: ...

    def add(self, batch: LayerBatch) -> None: ...


def measure_layers(measure: LayerMeasure, config: MeasurementConfig, accelerator: Accelerator) -> int:
    """Add all batches of all processes to `measure`; return the number of samples."""
    with accelerator.main_process_first():  # only the main process downloads
        features = LayerFeatureLoader(config, accelerator.device, accelerator.process_index, accelerator.num_processes)
    disable = not accelerator.is_main_process or None  # None: tqdm disables itself outside a terminal
    for batch in tqdm(features, desc="layers", unit="batch", disable=disable, leave=False):
        measure.add(batch)
    measure.sums.copy_(accelerator.reduce(measure.sums, "sum"))
    return features.samples


def policy_depth(policy: str) -> int:
    return RocketConfig.from_pretrained(find_policy_folder(policy), alignment=None).policy_config.depth


def teacher_depth(teacher: str, cache: Path | None = None) -> int:
    if cache is not None:
        return Manifest.load(cache).depth
    name, _, revision = teacher.partition("@")
    return load_teacher(name, revision or None, device="meta").card.depth


def build_recipe(config: MeasurementConfig) -> VLARecipe:
    """Return the recipe of a run on the dataset whose targets are all layers of the teacher."""
    data = DatasetConfig(id=config.dataset)
    policy = RocketConfig.from_pretrained(find_policy_folder(config.policy), alignment=None)
    recipe = VLARecipe(
        policy=config.policy,
        robot=RobotConfig(**read_robot_from_dataset(data, policy)),
        data=DataConfig(datasets=[data], validation=0, workers=config.workers),
        run=RunConfig(base_dtype="bfloat16" if config.dtype == "bfloat16" else "float32"),
    )
    if config.teacher is not None:
        layers = list(range(1, teacher_depth(config.teacher, config.cache) + 1))
        recipe.alignment = AlignmentSettings(student_layers=[0] * len(layers), teacher_layers=layers)
        name, _, revision = config.teacher.partition("@")
        dtype = recipe.run.base_dtype
        caches = [] if config.cache is None else [str(config.cache)]
        recipe.teacher = TeacherSettings(name, revision or None, config.resolution, dtype, caches=caches)
    return recipe


class LayerFeatureLoader:
    """Loader of one process's batches of layers. Frames are drawn from the whole dataset, each at most once."""

    def __init__(self, config: MeasurementConfig, device: torch.device, rank: int = 0, ranks: int = 1):
        recipe = build_recipe(config)
        self.resources = load_training_resources(recipe, device)
        self.policy: RocketForActionPrediction = load_policy(self.resources.folder, None, recipe).to(device).eval()
        self.samples = count_samples(config, self.resources, ranks)
        self.loader = self.make_loader(recipe, config.batch_size, rank, ranks)
        processor, targets = self.resources.processor, self.resources.targets
        self.model_inputs = ModelInputs(self.policy.config, processor, targets, device)

    def make_loader(self, recipe: VLARecipe, batch_size: int, rank: int, ranks: int) -> BatchLoader:
        resources = self.resources
        return make_loader(
            resources.datasets, resources.order, resources.processor, self.policy.config, recipe.data, recipe.run.seed,
            batch_size, rank, ranks, 0, self.samples, resources.feature_readers,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.loader)

    @torch.no_grad()
    def __iter__(self) -> Iterator[LayerBatch]:
        for raw in self.loader:
            batch, images, warp = self.model_inputs.inputs(raw)
            targets: Targets = self.model_inputs.targets(raw, images, warp) or {}
            yield extract_layers(self.policy, batch, targets)


def extract_layers(policy: RocketForActionPrediction, batch: Batch, targets: Targets) -> LayerBatch:
    """Return all layers of the policy and the targets of a batch. The policy runs as in inference, without actions."""
    observations = {key: value for key, value in batch.items() if key not in ("actions", "action_is_pad")}
    taps = policy.policy(observations, range(policy.config.policy_config.depth + 1)).taps
    return LayerBatch(taps, targets, batch["camera_mask"])


def count_samples(config: MeasurementConfig, resources: TrainingResources, ranks: int) -> int:
    """Return the number of samples: those requested, at most one per frame, in complete batches of all processes.

    Incomplete batches are left out because all batches have the same weight in a measure.
    """
    available = min(config.samples, sum(len(part) for part in resources.order.frames))
    per_step = config.batch_size * ranks
    samples = available // per_step * per_step
    if not samples:
        raise UserError(
            f"{available} samples of {config.dataset} do not fill a batch of {config.batch_size} on each of {ranks} "
            "processes: pass more --samples, or a smaller --batch-size"
        )
    return samples
