"""All frames of a LeRobot dataset as a feature cache is built from them, and how the cache knows the dataset again."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..modeling.strict_config import nearest
from .cache_manifest import LOCAL


class LeRobotFrames:
    """Pictures by the frame's index in the whole dataset, which is a folder or a Hub id with an optional @revision."""

    def __init__(self, source: str, cameras: Sequence[str] | None = None):
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        folder = Path(source)
        if folder.is_dir():
            if not (folder / "meta" / "info.json").is_file():
                raise ValueError(f"{folder} is no LeRobot dataset: it has no meta/info.json")
            self.data = LeRobotDataset(f"{LOCAL}/{folder.resolve().name}", root=folder, return_uint8=True)
            self.dataset, self.revision = folder.resolve().name, LOCAL
        else:
            self.dataset, _, revision = source.partition("@")
            self.data = LeRobotDataset(self.dataset, revision=revision or None, return_uint8=True)
            self.revision = self.data.revision
        self.fingerprint = dataset_fingerprint(self.data.meta)
        known = colour_cameras(self.data.meta)
        for camera in cameras or ():
            if camera not in known:
                raise ValueError(f"{source} has no camera {camera!r}: {nearest(camera, known)}")
        if not known:
            raise ValueError(f"{source} has no camera, so there is nothing to cache")
        self.sizes = {camera: known[camera] for camera in cameras or known}

    def __len__(self) -> int:
        return self.data.meta.total_frames

    def pictures(self, indices: Sequence[int]) -> list[Tensor]:
        """By camera, (frames, 3, H, W) uint8."""
        frames = [self.data[index] for index in indices]
        assert [int(frame["index"]) for frame in frames] == list(indices)
        return [torch.stack([as_bytes(frame[camera]) for frame in frames]) for camera in self.sizes]


def as_bytes(picture: Tensor) -> Tensor:
    """lerobot gives stored images, other than videos, in [0, 1]."""
    return picture if picture.dtype == torch.uint8 else (picture * 255).round().to(torch.uint8)


def colour_cameras(meta: Any) -> dict[str, tuple[int, int]]:
    """The size (height, width) of each camera but depth cameras, of lerobot's metadata of a dataset."""
    sizes = {}
    for key in meta.camera_keys:
        if key not in meta.depth_keys:
            feature = meta.features[key]
            size = dict(zip(feature["names"], feature["shape"], strict=True))
            sizes[key] = (size["height"], size["width"])
    return sizes


def dataset_fingerprint(meta: Any) -> str:
    """Of lerobot's metadata of a dataset: how long its episodes are, its cameras and how their pictures look."""
    cameras = colour_cameras(meta)
    looks = {
        camera: {name: (meta.stats or {}).get(camera, {}).get(name) for name in ("mean", "std")} for camera in cameras
    }
    stated = {"lengths": list(meta.episodes["length"]), "cameras": cameras, "looks": looks}
    return sha256(json.dumps(stated, sort_keys=True, default=lambda array: array.tolist()).encode()).hexdigest()
