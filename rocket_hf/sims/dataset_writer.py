"""Demonstrations as a LeRobotDataset (v3), written with lerobot's own writer.

Camera images are stored as h264 video; computed images, such as world coordinates, as PNG, without loss. Depth is
stored as lerobot's depth video: quantized to twelve bits on a logarithmic scale, which is accurate to 0.08 % between
DEPTH_MIN and DEPTH_MAX, and then encoded without loss.
"""

from pathlib import Path
from typing import Any

from rocket_hf.tiny_dataset import quiet_encoders

from .environment import Environment
from .expert import Demonstration

DEPTH_MIN, DEPTH_MAX = 0.02, 10.0  # meters; greater depth, such as the sky, is recorded as DEPTH_MAX
# With macroblock trees the same small images sometimes give different videos: x264's optimized code for them reads
# uninitialized memory.
X264_PARAMS = "mbtree=0"
# Only intra frames (g=1): x265 encodes some predicted frames wrongly at twelve bits, even in its lossless mode.
X265_PARAMS = "lossless=1:pools=none:frame-threads=1:log-level=none"
QUEUE_SIZE = 100_000  # lerobot drops frames if the encoder's queue is full


def demonstration_features(environment: Environment, image_size: int, depth: bool) -> dict[str, Any]:
    """Return the columns of the dataset in lerobot's format."""
    columns: dict[str, Any] = {}
    for camera in environment.cameras:
        columns[f"observation.images.{camera}"] = video_feature(image_size, 3)
        if depth:
            depth_feature = video_feature(image_size, 1) | {"info": {"is_depth_map": True}}
            columns[f"observation.images.{camera}_depth"] = depth_feature
            columns[f"camera.{camera}.intrinsics"] = vector_feature([f"{row}{col}" for row in "xyz" for col in "xyz"])
            columns[f"camera.{camera}.pose"] = vector_feature([f"{row}{col}" for row in "xyzw" for col in "xyzw"])
    for name in environment.computed_images:
        columns[f"observation.images.{name}"] = image_feature(image_size)
    columns["observation.state"] = vector_feature(environment.state_names)
    columns["action"] = vector_feature(environment.action_names)
    columns["next.success"] = {"dtype": "bool", "shape": (1,), "names": None}
    columns["seed"] = {"dtype": "int64", "shape": (1,), "names": None}
    return columns


def video_feature(image_size: int, channels: int) -> dict[str, Any]:
    names = ["height", "width", "channels"]
    return {"dtype": "video", "shape": (image_size, image_size, channels), "names": names}


def image_feature(image_size: int) -> dict[str, Any]:
    """Return a column of PNG images, which keep every level."""
    return video_feature(image_size, 3) | {"dtype": "image"}


def vector_feature(names: Any) -> dict[str, Any]:
    return {"dtype": "float32", "shape": (len(names),), "names": list(names)}


def image_encoder() -> Any:
    """Return the encoder of images, with full color resolution: in small images, subsampled colors blur objects."""
    from lerobot.configs import RGBEncoderConfig

    options = {"x264-params": X264_PARAMS}
    return RGBEncoderConfig(vcodec="h264", pix_fmt="yuv444p", crf=18, preset="veryfast", extra_options=options)


def writer_options(folder: Path) -> dict[str, Any]:
    """Return the arguments that lerobot's `create` and `resume` have in common."""
    from lerobot.configs import DepthEncoderConfig

    return {
        "repo_id": f"local/{folder.name}",
        "root": folder,
        "streaming_encoding": True,
        "encoder_queue_maxsize": QUEUE_SIZE,
        "encoder_threads": 1,
        "rgb_encoder": image_encoder(),
        "depth_encoder": DepthEncoderConfig(
            depth_min=DEPTH_MIN,
            depth_max=DEPTH_MAX,
            shift=0.0,
            g=1,
            preset="superfast",
            extra_options={"x265-params": X265_PARAMS},
        ),
        "video_backend": "pyav",  # used only for reading; the default would require torchcodec
    }


def create_dataset(folder: Path, environment: Environment, image_size: int, depth: bool) -> Any:
    """Create an empty dataset with the columns of an environment."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset.create(
        fps=environment.fps,
        features=demonstration_features(environment, image_size, depth),
        robot_type=environment.suite,
        **writer_options(folder),
    )


def resume_dataset(folder: Path) -> Any:
    """Open a dataset to append episodes."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset.resume(**writer_options(folder))


def write_episode(dataset: Any, demonstration: Demonstration) -> None:
    with quiet_encoders():
        for frame in demonstration.frames:
            dataset.add_frame(frame | {"task": demonstration.instruction})
        dataset.save_episode(parallel_encoding=False)
