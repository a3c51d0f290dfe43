"""MuJoCo's cameras: what draws them, and where they are in OpenCV's terms."""

import atexit
from typing import Any

import numpy as np

OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0])  # MuJoCo's cameras look along -z with y up
AS_IT_IS = np.eye(3)


def open_renderer(model: Any, image_size: int) -> Any:
    import mujoco

    model.vis.global_.offwidth = max(model.vis.global_.offwidth, image_size)
    model.vis.global_.offheight = max(model.vis.global_.offheight, image_size)
    renderer = mujoco.Renderer(model, image_size, image_size)
    atexit.register(renderer.close)  # for an environment that nobody closed: EGL complains when it goes first
    return renderer


def close_renderer(renderer: Any) -> None:
    atexit.unregister(renderer.close)
    renderer.close()


def intrinsics(model: Any, camera: str, image_size: int) -> np.ndarray:
    """(3, 3). Square pixels, their centers at whole numbers."""
    opening = np.deg2rad(model.camera(camera).fovy[0])
    focal, center = image_size / 2 / np.tan(opening / 2), (image_size - 1) / 2
    return np.array([[focal, 0, center], [0, focal, center], [0, 0, 1]], np.float32)


def pose(data: Any, camera: str, picture: np.ndarray = AS_IT_IS, world: np.ndarray = AS_IT_IS) -> np.ndarray:
    """(4, 4) float32, from the camera to the world; (3, 3) how its picture is turned, and the world is mirrored."""
    placed = data.camera(camera)
    matrix = np.eye(4, dtype=np.float32)
    matrix[:3, :3] = world @ placed.xmat.reshape(3, 3) @ OPENGL_TO_OPENCV @ picture
    matrix[:3, 3] = world @ placed.xpos
    return matrix
