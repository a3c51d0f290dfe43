"""How a feature cache knows its LeRobot dataset again, from lerobot's own metadata of it."""

import json
from hashlib import sha256
from typing import Any


def color_cameras(meta: Any) -> dict[str, tuple[int, int]]:
    """The size (height, width) of each camera but depth cameras."""
    return {
        key: picture_size(meta.features[key]["shape"], meta.features[key]["names"])
        for key in meta.camera_keys
        if key not in meta.depth_keys
    }


def picture_size(shape: list[int], names: list[str] | None) -> tuple[int, int]:
    """The order of the sides differs between writers of datasets, and their names say which it is."""
    first_is_channels = (names or [""])[0] in ("channel", "channels", "c")
    height, width = shape[1:] if first_is_channels else shape[:2]
    return int(height), int(width)


def dataset_fingerprint(meta: Any) -> str:
    """Of how long its episodes are, its cameras and how their pictures look."""
    cameras = color_cameras(meta)
    looks = {
        camera: {name: (meta.stats or {}).get(camera, {}).get(name) for name in ("mean", "std")} for camera in cameras
    }
    stated = {"lengths": list(meta.episodes["length"]), "cameras": cameras, "looks": looks}
    return sha256(json.dumps(stated, sort_keys=True, default=lambda array: array.tolist()).encode()).hexdigest()
