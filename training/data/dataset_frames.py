"""All frames of a LeRobot dataset for a teacher's feature cache: the pictures that training reads, and no numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rocket_hf.errors import UserError
from rocket_hf.modeling.strict_config import nearest
from rocket_hf.teachers.cache_manifest import LOCAL
from rocket_hf.teachers.dataset_identity import color_cameras, dataset_fingerprint

from .lerobot_data import check_frames, open_sources
from .lerobot_files import locate, read_columns, read_files


class DatasetFrames:
    """By the frame's number in the dataset, lerobot's `index`. Cameras are the dataset's keys, by default all."""

    def __init__(self, id: str, cameras: Sequence[str] | None = None):
        root, self.revision = locate(id)
        files = read_files(id, root)
        self.dataset = root.resolve().name if self.revision == LOCAL else id.partition("@")[0]
        self.fingerprint = dataset_fingerprint(files.meta)
        known = color_cameras(files.meta)
        for camera in cameras or ():
            if camera not in known:
                raise UserError(f"the dataset {id} has no camera {camera!r}: {nearest(camera, known)}")
        if not known:
            raise UserError(f"the dataset {id} has no camera, so a teacher has nothing to see")
        self.sizes = {camera: known[camera] for camera in cameras or known}
        columns = read_columns(id, files.data_files(), ["index", "episode_index", "timestamp"])
        check_frames(files, columns["index"], columns["episode_index"])
        self.episodes = columns["episode_index"]
        every = range(len(files.lengths))
        self.sources = open_sources(files, self.revision, list(self.sizes), every, columns["timestamp"])

    def __len__(self) -> int:
        return len(self.episodes)

    def read_images(self, indices: Sequence[int]) -> list[Tensor]:
        """By camera, (frames, 3, H, W) uint8."""
        return [
            torch.stack([self.sources[camera].read(index, int(self.episodes[index])) for index in indices])
            for camera in self.sizes
        ]
