"""DataLoader over LeRobot datasets whose workers produce whole batches, in the order of a run.

One item of the dataset is one batch. A worker produces it completely: it reads the frames and their images, normalizes
states and actions, tokenizes the prompts, and draws everything random from a generator of each sample's own position.
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
from .augmentation import check_augmented_cameras, draw_augmentations, is_identity
from .batches import LoaderBatch, sample_generator
from .lerobot_data import RobotDataset

MAX_ASPECT_DIFFERENCE = 0.01  # relative difference of width / height up to which two sizes show the same image
CPU = torch.device("cpu")


class SampleOrder(Protocol):
    """Order of the samples of a run."""

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Return the index of the dataset and the index of the frame in it."""


class FeatureReader(Protocol):
    """Reader for the rows of a teacher's feature cache of one dataset, by frame index."""

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
    world_size: int = 1,
    start_position: int = 0,
    end_position: int = 0,
    feature_caches: Sequence[FeatureReader] | None = None,
) -> "BatchLoader":
    """Return the loader of one rank: batches of `batch_size` from `start_position` to `end_position` of all ranks.

    The last batch may be smaller, or missing on some ranks; training only requests whole steps. Workers are spawned,
    not forked, so that they share no video decoder with this process.
    """
    batches = BatchDataset(datasets, order, processor, rocket_config, data_config, seed, feature_caches)
    batches.assign_positions(batch_size, rank, world_size, start_position, end_position)
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
    """DataLoader that raises the UserErrors of its workers without the worker's traceback."""

    def __iter__(self) -> Iterator[LoaderBatch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


class BatchDataset(Dataset):
    """Dataset whose items are the whole batches of one rank."""

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
        self.image_sizes = common_image_sizes(self.datasets, self.cameras, after_resizing=True)
        self.image_aspects = resized_image_aspects(self.datasets, self.cameras)
        policy = rocket_config.policy_config
        self.noise_shape = (rocket_config.chunk_size, policy.max_action_dim) if policy.draws_noise else None
        augmentation = data_config.augmentation
        check_augmented_cameras(augmentation, self.cameras)
        self.augmentation = None if is_identity(augmentation) else augmentation
        self.feature_caches = feature_caches
        self.lacks_dimensions = any(not (data.state_mask.all() and data.action_mask.all()) for data in datasets)

    def assign_positions(self, batch_size: int, rank: int, world_size: int, start: int, end: int) -> None:
        """Assign this rank its positions among start .. end - 1: `batch_size` consecutive ones of each step."""
        assert 0 <= rank < world_size and start <= end
        self.batch_size, self.stride, self.end = batch_size, batch_size * world_size, end
        self.first = start + rank * batch_size

    def __len__(self) -> int:
        return max(0, -(-(self.end - self.first) // self.stride))

    def __getitem__(self, index: int) -> LoaderBatch | UserError:
        """Return a batch, or the UserError that prevented it.

        UserErrors are returned, because DataLoader would wrap a raised one in the worker's traceback; `BatchLoader`
        raises them. All other errors are bugs and keep their traceback.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = self.first + index * self.stride
        positions = range(start, min(start + self.batch_size, self.end))
        try:
            return self.collate([self.sample(position) for position in positions])
        except UserError as error:
            return error

    def sample(self, position: int) -> dict[str, Any]:
        """Return a frame with its random draws, which always have the same order: augmentation, noise, time."""
        dataset, index = self.order[position]
        data = self.datasets[dataset]
        sample = data.sample(index) | {"position": position, "dataset": dataset}
        sample["images"] = {
            camera: resize_to(image, self.image_sizes[camera]) for camera, image in sample["images"].items()
        }
        sample["camera_mask"] = torch.tensor(data.camera_mask)
        if self.lacks_dimensions:
            sample |= {"state_mask": data.state_mask, "action_mask": data.action_mask}
        generator = sample_generator(self.seed, position)
        if self.augmentation is not None:
            sample["augmentation"] = draw_augmentations(self.augmentation, self.cameras, generator)
        if self.noise_shape is not None:
            sample["noise"] = draw_noise(self.noise_shape, CPU, generator)
            sample["time"] = draw_time(1, CPU, generator)[0]
        if self.feature_caches is not None:
            sample["features"] = self.feature_caches[dataset].read(sample["index"])
        return sample

    def collate(self, samples: list[dict[str, Any]]) -> LoaderBatch:
        state, actions = (torch.stack([sample[key] for sample in samples]) for key in ("state", "actions"))
        batch: dict[str, Any] = {
            key: torch.stack([sample[key] for sample in samples])
            for key in ("camera_mask", "action_is_pad", "action_mask", "augmentation", "noise", "time")
            if key in samples[0]
        }
        state_mask = torch.stack([sample["state_mask"] for sample in samples]) if self.lacks_dimensions else None
        batch["images"] = [torch.stack([sample["images"][camera] for sample in samples]) for camera in self.cameras]
        tasks = [sample["task"] for sample in samples]
        batch |= self.processor.encode_state_and_text(tasks, state, actions, state_mask=state_mask)
        if self.lacks_dimensions:
            batch["actions"] = batch["actions"].where(batch["action_mask"][:, None], 0)
        if self.image_aspects is not None:
            batch["image_aspects"] = self.image_aspects
        for key in ("dataset", "episode_index", "frame_index", "index", "position"):
            batch[key] = torch.tensor([sample[key] for sample in samples])
        if self.feature_caches is not None:
            rows = [sample["features"] for sample in samples]
            batch["features"] = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        self.check_finite(batch)
        return cast(LoaderBatch, batch)

    def check_finite(self, batch: dict[str, Any]) -> None:
        for name in ("state", "actions"):
            bad = (~batch[name].isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
            if bad:
                dataset, index = self.order[int(batch["position"][bad[0]])]
                data = self.datasets[dataset]
                raise UserError(
                    f"the normalized {name} of {data.id} is not finite at "
                    f"{data.describe_frame(index)}: check the statistics of the policy's processor"
                )


def common_image_sizes(
    datasets: Sequence[RobotDataset], cameras: Sequence[str], after_resizing: bool = False
) -> dict[str, tuple[int, int]]:
    """Return one size per camera, so that images of all datasets fit into one batch: the smallest of the datasets.

    By default these are the sizes that the datasets record, otherwise those of the images that they return.
    """
    sizes = {}
    for index, camera in enumerate(cameras):
        with_camera = [data for data in datasets if data.camera_mask[index]] or list(datasets)
        height, width = min(data.camera_sizes[camera] for data in with_camera)
        sizes[camera] = (height, width)
        if after_resizing:
            sizes[camera] = min(data.image_sizes[camera] for data in with_camera)
        for data in with_camera:
            rows, columns = data.camera_sizes[camera]
            if abs(columns * height / (rows * width) - 1) > MAX_ASPECT_DIFFERENCE:
                raise UserError(
                    f"camera {camera!r} has images of {rows}x{columns} in {data.id}, but of {height}x{width} in "
                    "another dataset of the mixture: crop one of them to the same aspect ratio"
                )
    return sizes


def resized_image_aspects(datasets: Sequence[RobotDataset], cameras: Sequence[str]) -> Tensor | None:
    """Return width / height of each camera's images before resizing, (V,), or None if no image is resized."""
    if all(data.image_sizes == data.camera_sizes for data in datasets):
        return None
    sizes = common_image_sizes(datasets, cameras).values()
    return torch.tensor([width / height for height, width in sizes])


def resize_to(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize an image (3, H, W) uint8 to a size of the same aspect ratio."""
    if image.shape[1:] == size:
        return image
    resized = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)
