"""All layers of a policy and of a teacher on frames of a dataset, batch by batch: what layers are chosen by."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.policy_interface import Batch
from rocket_hf.teachers.load import load_teacher
from rocket_hf.teachers.teacher import Resolution
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
from rocket_hf.training.vla.resources import TrainingResources, load_policy, load_training_resources, policy_folder
from rocket_hf.training.vla.targets import Targets

from .by_measure import LayerBatch


@dataclass
class MeasurementConfig:
    """What is looked at, and how."""

    policy: str
    dataset: str
    teacher: str | None  # none where only the student is looked at
    resolution: Resolution
    dtype: str
    samples: int
    batch_size: int
    workers: int


class Measure(Protocol):
    @property
    def sums(self) -> Tensor: ...

    def add(self, batch: LayerBatch) -> None: ...


def measure_layers(measure: Measure, asked: MeasurementConfig, accelerator: Accelerator) -> int:
    """Adds up the shares of all processes; how many samples there were."""
    with accelerator.main_process_first():  # it fetches what the others find
        features = LayerFeatures(asked, accelerator.device, accelerator.process_index, accelerator.num_processes)
    hidden = not accelerator.is_main_process or None  # None: hidden where nobody looks at a terminal
    for batch in tqdm(features, desc="layers", unit="batch", disable=hidden, leave=False):
        measure.add(batch)
    measure.sums.copy_(accelerator.reduce(measure.sums, "sum"))
    return features.samples


def policy_depth(policy: str) -> int:
    return RocketConfig.from_pretrained(policy_folder(policy), alignment=None).policy_config.depth


def teacher_depth(teacher: str) -> int:
    name, _, revision = teacher.partition("@")
    return load_teacher(name, revision or None, device="meta").card.depth


def recipe_of(asked: MeasurementConfig) -> VLARecipe:
    """The recipe of a run whose targets are all layers of the teacher, for the robot of the dataset."""
    data = DatasetConfig(id=asked.dataset)
    policy = RocketConfig.from_pretrained(policy_folder(asked.policy), alignment=None)
    recipe = VLARecipe(
        policy=asked.policy,
        robot=RobotConfig(**read_robot_from_dataset(data, policy)),
        data=DataConfig(datasets=[data], validation=0, workers=asked.workers),
        run=RunConfig(base_dtype="bfloat16" if asked.dtype == "bfloat16" else "float32"),
    )
    if asked.teacher is not None:
        layers = list(range(1, teacher_depth(asked.teacher) + 1))
        recipe.alignment = AlignmentSettings(student_layers=[0] * len(layers), teacher_layers=layers)
        name, _, revision = asked.teacher.partition("@")
        dtype = recipe.run.base_dtype
        recipe.teacher = TeacherSettings(name, revision or None, asked.resolution, dtype)
    return recipe


class LayerFeatures:
    """The batches of one of `ranks` processes. Frames are drawn from the whole dataset, each at most once."""

    def __init__(self, asked: MeasurementConfig, device: torch.device, rank: int = 0, ranks: int = 1):
        recipe = recipe_of(asked)
        self.sources = load_training_resources(recipe, device)
        self.policy: RocketForActionPrediction = load_policy(self.sources.folder, None, recipe).to(device).eval()
        self.samples = check_samples(asked, self.sources, ranks)
        self.loader = self.make_loader(recipe, asked.batch_size, rank, ranks)
        config, processor = self.policy.config, self.sources.processor
        self.model_inputs = ModelInputs(config, processor, self.sources.targets, device)

    def make_loader(self, recipe: VLARecipe, batch_size: int, rank: int, ranks: int) -> BatchLoader:
        sources = self.sources
        return make_loader(
            sources.datasets, sources.order, sources.processor, self.policy.config, recipe.data, recipe.run.seed,
            batch_size, rank, ranks, 0, self.samples,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.loader)

    @torch.no_grad()
    def __iter__(self) -> Iterator[LayerBatch]:
        for raw in self.loader:
            batch, pictures, warp = self.model_inputs.inputs(raw)
            targets: Targets = self.model_inputs.targets(raw, pictures, warp) or {}
            yield layers_of(self.policy, batch, targets)


def layers_of(policy: RocketForActionPrediction, batch: Batch, targets: Targets) -> LayerBatch:
    """All layers of the policy, which acts as if the actions were not known."""
    seen = {key: value for key, value in batch.items() if key not in ("actions", "action_is_pad")}
    taps = policy.policy(seen, range(policy.config.policy_config.depth + 1)).taps
    return LayerBatch(taps, targets, batch["camera_mask"])


def check_samples(asked: MeasurementConfig, sources: TrainingResources, ranks: int) -> int:
    """As many as were asked for, but no frame twice, in whole batches of all processes: batches weigh the same."""
    frames = sum(len(part) for part in sources.order.frames)
    each = asked.batch_size * ranks
    samples = min(asked.samples, frames) // each * each
    if not samples:
        raise UserError(
            f"{min(asked.samples, frames)} samples of {asked.dataset} make no batch of {asked.batch_size} on {ranks} "
            "processes: ask for more samples, or a smaller --batch-size"
        )
    return samples
