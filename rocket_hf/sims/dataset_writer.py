"""Demonstrations as a LeRobotDataset (v3), through lerobot's own writer.

Pictures are h264 video; depth is lerobot's own depth video, lossless after its quantization to twelve bits on a
logarithmic scale, which keeps it within 0.08 % of the truth between DEPTH_MIN and DEPTH_MAX.
"""

from pathlib import Path
from typing import Any

from rocket_hf.tiny_dataset import quiet_encoders

from .environment import Environment
from .expert import Demonstration

DEPTH_MIN, DEPTH_MAX = 0.02, 10.0  # meters; what is farther, as the sky is, is recorded as DEPTH_MAX
# Without it the same pictures give another video now and then: with small pictures, x264's fast code for it reads what
# happens to be in memory.
X264 = "mbtree=0"
# Every frame by itself: of frames that build on others, x265 stores some wrongly at twelve bits, for all that it says
# of itself that it is lossless.
X265 = "lossless=1:pools=none:frame-threads=1:log-level=none"
QUEUE = 100_000  # frames that wait for their encoder: lerobot drops those for which there is no room


def features(environment: Environment, image_size: int, depth: bool) -> dict[str, Any]:
    """As lerobot describes columns."""
    columns: dict[str, Any] = {}
    for camera in environment.cameras:
        columns[f"observation.images.{camera}"] = video(image_size, 3)
        if depth:
            columns[f"observation.images.{camera}_depth"] = video(image_size, 1) | {"info": {"is_depth_map": True}}
            columns[f"camera.{camera}.intrinsics"] = numbers([f"{row}{column}" for row in "xyz" for column in "xyz"])
            columns[f"camera.{camera}.pose"] = numbers([f"{row}{column}" for row in "xyzw" for column in "xyzw"])
    columns["observation.state"] = numbers(environment.state_names)
    columns["action"] = numbers(environment.action_names)
    columns["next.success"] = {"dtype": "bool", "shape": (1,), "names": None}
    columns["seed"] = {"dtype": "int64", "shape": (1,), "names": None}
    return columns


def video(image_size: int, channels: int) -> dict[str, Any]:
    names = ["height", "width", "channels"]
    return {"dtype": "video", "shape": (image_size, image_size, channels), "names": names}


def numbers(names: Any) -> dict[str, Any]:
    return {"dtype": "float32", "shape": (len(names),), "names": list(names)}


def picture_encoder() -> Any:
    """In full colors: at such sizes halved ones blur a whole object."""
    from lerobot.configs import RGBEncoderConfig

    options = {"x264-params": X264}
    return RGBEncoderConfig(vcodec="h264", pix_fmt="yuv444p", crf=18, preset="veryfast", extra_options=options)


def open_writer(folder: Path, environment: Environment, image_size: int, depth: bool, resume: bool) -> Any:
    from lerobot.configs import DepthEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    how = {
        "repo_id": f"local/{folder.name}",
        "root": folder,
        "streaming_encoding": True,
        "encoder_queue_maxsize": QUEUE,
        "encoder_threads": 1,
        "rgb_encoder": picture_encoder(),
        "depth_encoder": DepthEncoderConfig(
            depth_min=DEPTH_MIN,
            depth_max=DEPTH_MAX,
            shift=0.0,
            g=1,
            preset="superfast",
            extra_options={"x265-params": X265},
        ),
        "video_backend": "pyav",  # of a reader; nothing is read here
    }
    if resume:
        return LeRobotDataset.resume(**how)
    return LeRobotDataset.create(
        fps=environment.fps,
        features=features(environment, image_size, depth),
        robot_type=environment.suite,
        **how,
    )


def write_episode(dataset: Any, demonstration: Demonstration) -> None:
    with quiet_encoders():
        for frame in demonstration.frames:
            dataset.add_frame(frame | {"task": demonstration.instruction})
        dataset.save_episode(parallel_encoding=False)
