"""Fingerprint and cameras of a LeRobot dataset, computed from lerobot's metadata. They identify a cache's dataset."""

import json
from hashlib import sha256
from typing import Any


def color_cameras(meta: Any) -> dict[str, tuple[int, int]]:
    """Return the image size (height, width) of each camera, depth cameras excluded."""
    return {
        key: image_size_of(meta.features[key]["shape"], meta.features[key]["names"])
        for key in meta.camera_keys
        if key not in meta.depth_keys
    }


def image_size_of(shape: list[int], names: list[str] | None) -> tuple[int, int]:
    """Return (height, width) from a feature's shape. Datasets store channels first or last; `names` decides which."""
    channels_first = (names or [""])[0] in ("channel", "channels", "c")
    height, width = shape[1:] if channels_first else shape[:2]
    return int(height), int(width)


def dataset_fingerprint(meta: Any) -> str:
    """Return a hash of the episode lengths, the cameras, and the mean and deviation of each camera's images."""
    cameras = color_cameras(meta)
    statistics = {
        camera: {name: (meta.stats or {}).get(camera, {}).get(name) for name in ("mean", "std")} for camera in cameras
    }
    # The keys are part of the hash: other names would make every existing cache unusable.
    values = {"lengths": list(meta.episodes["length"]), "cameras": cameras, "looks": statistics}
    return sha256(json.dumps(values, sort_keys=True, default=lambda array: array.tolist()).encode()).hexdigest()
