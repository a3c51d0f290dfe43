"""Batches from datasets, in the order of a run, made by workers.

One item of the loader is one batch, which a worker makes from start to end: which frames, their pictures, the numbers
normalized, the prompts tokenized, and everything random drawn from a generator of each sample's own position.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.flow_matching import draw_noise, draw_time
from rocket_hf.modeling.processing_rocket import RocketProcessor

from ..recipe import DataConfig
from .augmentation import draw_augmentation, is_identity
from .batches import LoaderBatch, sample_generator
from .lerobot_data import RobotDataset

SAME_ASPECT = 0.01  # relative difference of width / height up to which two sizes show the same picture
CPU = torch.device("cpu")


class SampleOrder(Protocol):
    def __getitem__(self, position: int) -> tuple[int, int]:
        """(number of the dataset, frame in it)."""


class FeatureReader(Protocol):
    """A teacher's feature cache of one dataset."""

    def read(self, index: int) -> Mapping[str, Tensor]: ...


def make_loader(
    datasets: Sequence[RobotDataset],
    order: SampleOrder,
    processor: RocketProcessor,
    rocket_config: RocketConfig,
    data_config: DataConfig,
    seed: int,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    start_position: int = 0,
    total: int = 0,
    feature_caches: Sequence[FeatureReader] | None = None,
) -> "BatchLoader":
    """Batches of `batch_size` for one rank, from `start_position` up to the position `total` of all ranks.

    A last batch may be smaller, or be missing on some ranks: training asks for whole steps. The workers start anew, by
    spawn, so that they share no decoder with the process that made them.
    """
    batches = BatchDataset(datasets, order, processor, rocket_config, data_config, seed, feature_caches)
    batches.share(batch_size, rank, world, start_position, total)
    workers = data_config.workers
    return BatchLoader(
        batches,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        persistent_workers=workers > 0,
        prefetch_factor=data_config.prefetch if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


class BatchLoader(DataLoader):
    """Raises what went wrong in a worker as it was said there, in one sentence without the worker's traceback."""

    def __iter__(self) -> Iterator[LoaderBatch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, ValueError):
                raise batch
            yield batch


class BatchDataset(Dataset):
    def __init__(
        self,
        datasets: Sequence[RobotDataset],
        order: SampleOrder,
        processor: RocketProcessor,
        rocket_config: RocketConfig,
        data_config: DataConfig,
        seed: int,
        feature_caches: Sequence[FeatureReader] | None = None,
    ):
        self.datasets, self.order, self.processor, self.seed = list(datasets), order, processor, seed
        self.cameras = list(rocket_config.cameras)
        self.sizes = common_image_sizes(self.datasets, self.cameras)
        policy = rocket_config.policy_config
        self.noise_shape = (rocket_config.chunk_size, policy.max_action_dim) if policy.draws_noise else None
        augmentation = data_config.augmentation
        for camera in augmentation.color_only:
            if camera not in self.cameras:
                raise UserError(f"data.augmentation.color_only: the policy has no camera {camera!r}")
        self.augmentation = None if is_identity(augmentation) else augmentation
        self.feature_caches = feature_caches

    def share(self, batch_size: int, rank: int, world: int, start: int, total: int) -> None:
        """What of the positions start .. total - 1 is this rank's: `batch_size` in a row of each step."""
        assert 0 <= rank < world and start <= total
        self.batch_size, self.stride, self.total = batch_size, batch_size * world, total
        self.first = start + rank * batch_size

    def __len__(self) -> int:
        return max(0, -(-(self.total - self.first) // self.stride))

    def __getitem__(self, number: int) -> LoaderBatch | ValueError:
        """An error is handed over as a value, since a loader wraps what a worker raises in its traceback."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        start = self.first + number * self.stride
        try:
            return self.collate([self.sample(position) for position in range(start, start + self.batch_size)
                                 if position < self.total])  # fmt: skip
        except ValueError as error:
            return error

    def sample(self, position: int) -> dict[str, Any]:
        """A frame and all that is random about it, always drawn in this order: augmentation, noise, time."""
        dataset, index = self.order[position]
        data = self.datasets[dataset]
        sample = data.sample(index) | {"position": position, "dataset": dataset}
        sample["images"] = {camera: fit(picture, self.sizes[camera]) for camera, picture in sample["images"].items()}
        sample["camera_mask"] = torch.tensor(data.camera_mask)
        generator = sample_generator(self.seed, position)
        if self.augmentation is not None:
            rows = [draw_augmentation(self.augmentation, camera, generator) for camera in self.cameras]
            sample["augmentation"] = torch.stack(rows)
        if self.noise_shape is not None:
            sample["noise"] = draw_noise(self.noise_shape, CPU, generator)
            sample["time"] = draw_time(1, CPU, generator)[0]
        if self.feature_caches is not None:
            sample["features"] = self.feature_caches[dataset].read(index)
        return sample

    def collate(self, samples: list[dict[str, Any]]) -> LoaderBatch:
        state, actions = (torch.stack([sample[key] for sample in samples]) for key in ("state", "actions"))
        batch: dict[str, Any] = {
            "images": [torch.stack([sample["images"][camera] for sample in samples]) for camera in self.cameras],
            **self.processor.encode_state_and_text([sample["task"] for sample in samples], state, actions),
        }
        for key in ("camera_mask", "action_is_pad", "augmentation", "noise", "time"):
            if key in samples[0]:
                batch[key] = torch.stack([sample[key] for sample in samples])
        for key in ("dataset", "episode_index", "frame_index", "index", "position"):
            batch[key] = torch.tensor([sample[key] for sample in samples])
        if self.feature_caches is not None:
            rows = [sample["features"] for sample in samples]
            batch["features"] = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        self.require_finite(batch)
        return cast(LoaderBatch, batch)

    def require_finite(self, batch: dict[str, Any]) -> None:
        for what in ("state", "actions"):
            bad = (~batch[what].isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
            if bad:
                data = self.datasets[int(batch["dataset"][bad[0]])]
                raise UserError(
                    f"the normalized {what} of {data.id} is not finite at {data.name(int(batch['index'][bad[0]]))}: "
                    "look at the statistics of the processor"
                )


def common_image_sizes(datasets: Sequence[RobotDataset], cameras: Sequence[str]) -> dict[str, tuple[int, int]]:
    """One size per camera, so that pictures of all datasets fit into one batch: the smallest one that a dataset has."""
    sizes = {}
    for number, camera in enumerate(cameras):
        having = [data for data in datasets if data.camera_mask[number]] or list(datasets)
        sizes[camera] = min(data.camera_sizes[camera] for data in having)
        height, width = sizes[camera]
        for data in having:
            rows, columns = data.camera_sizes[camera]
            if abs(columns * height / (rows * width) - 1) > SAME_ASPECT:
                raise UserError(
                    f"camera {camera!r} has pictures of {rows}x{columns} in {data.id} and of {height}x{width} in "
                    "another dataset of the mixture: their aspect ratios must be equal, so crop one of them"
                )
    return sizes


def fit(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture (3, H, W) of bytes at a size of the same aspect ratio."""
    if picture.shape[1:] == size:
        return picture
    resized = F.interpolate(picture[None].float(), size=size, mode="bilinear", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)
