"""World coordinates of the pixels of a dataset recorded with depth, as input for the oracle teacher's feature cache."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rocket_hf.errors import UserError
from rocket_hf.modeling.strict_config import suggest_name
from rocket_hf.rgbd_dataset import RgbdFrames
from rocket_hf.sims.environment import DepthView
from rocket_hf.sims.geometry_images import world_points
from rocket_hf.teachers.dataset_identity import color_cameras, dataset_fingerprint

from .lerobot_files import download_files, locate_dataset, read_dataset_files

CAMERA_PREFIX = "observation.images."


class WorldPointFrames:
    """Frame source whose images are world coordinates, (frames, 3, H, W) float32 in meters, from recorded depth.

    Cameras are keys of the dataset; by default all cameras that have depth.
    """

    def __init__(self, id: str, cameras: Sequence[str] | None = None):
        root, self.revision = locate_dataset(id)
        files = read_dataset_files(id, root)
        if files.meta.depth_keys:
            download_files(id, [f"videos/{key}/*" for key in files.meta.depth_keys])
        self.frames = RgbdFrames(root)
        self.dataset, self.fingerprint = files.name, dataset_fingerprint(files.meta)
        known = {f"{CAMERA_PREFIX}{camera}": number for number, camera in enumerate(self.frames.cameras)}
        for camera in cameras or ():
            if camera not in known:
                raise UserError(f"the dataset {id} has no depth of camera {camera!r}: {suggest_name(camera, known)}")
        sizes = color_cameras(files.meta)
        self.sizes = {camera: sizes[camera] for camera in cameras or known}
        self.numbers = [known[camera] for camera in self.sizes]

    def __len__(self) -> int:
        return len(self.frames)

    def read_images(self, indices: Sequence[int]) -> list[Tensor]:
        """Return the world coordinates of some frames for each camera, (frames, 3, H, W) in meters."""
        return [torch.stack([self.read_points(number, index) for index in indices]) for number in self.numbers]

    def read_points(self, camera: int, index: int) -> Tensor:
        frames = self.frames
        view = DepthView(
            frames.read_depth(frames.cameras[camera], index),
            frames.intrinsics[index, camera].numpy(),
            frames.poses[index, camera].numpy(),
        )
        return torch.from_numpy(world_points(view).astype(np.float32)).permute(2, 0, 1)
