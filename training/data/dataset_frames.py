"""Images of all frames of a LeRobot dataset, as input for a teacher's feature cache.

The images are those that training reads; states and actions are not loaded.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rocket_hf.errors import UserError
from rocket_hf.modeling.strict_config import suggest_name
from rocket_hf.teachers.dataset_identity import color_cameras, dataset_fingerprint

from .image_files import open_image_readers
from .lerobot_files import check_frames, locate_dataset, read_columns, read_dataset_files


class DatasetFrames:
    """Images of a dataset by lerobot's `index` of a frame. Cameras are keys of the dataset; all of them by default."""

    def __init__(self, id: str, cameras: Sequence[str] | None = None):
        root, self.revision = locate_dataset(id)
        files = read_dataset_files(id, root)
        self.dataset = files.name
        self.fingerprint = dataset_fingerprint(files.meta)
        known = color_cameras(files.meta)
        for camera in cameras or ():
            if camera not in known:
                raise UserError(f"the dataset {id} has no camera {camera!r}: {suggest_name(camera, known)}")
        if not known:
            raise UserError(f"the dataset {id} has no color camera, so there are no images for a teacher")
        self.sizes = {camera: known[camera] for camera in cameras or known}
        columns = read_columns(id, files.data_files(), ["index", "episode_index", "timestamp"])
        check_frames(files, columns["index"], columns["episode_index"])
        self.episodes = columns["episode_index"]
        all_episodes = range(len(files.lengths))
        self.image_readers = open_image_readers(
            files, self.revision, list(self.sizes), all_episodes, columns["timestamp"]
        )

    def __len__(self) -> int:
        return len(self.episodes)

    def read_images(self, indices: Sequence[int]) -> list[Tensor]:
        """Return the images of some frames for each camera, (frames, 3, H, W) uint8."""
        return [torch.stack([self.read_image(camera, index) for index in indices]) for camera in self.sizes]

    def read_image(self, camera: str, index: int) -> Tensor:
        try:
            return self.image_readers[camera].read(index, int(self.episodes[index]))
        except UserError as error:
            raise UserError(
                f"the image of camera {camera!r} of {self.dataset} at frame {index} cannot be read: {error}"
            ) from error
