"""Cameras of MuJoCo: their renderer, intrinsics and poses in OpenCV's convention."""

import atexit
from typing import Any

import numpy as np

from rocket_hf.errors import UserError

from .camera_motion import NO_MOTION, CameraMotion
from .headless import INSTALL_OPENGL, import_mujoco

OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0])  # MuJoCo's cameras have their axes z backward, y up
IDENTITY = np.eye(3)


def open_renderer(model: Any, image_size: int) -> Any:
    mujoco = import_mujoco()
    model.vis.global_.offwidth = max(model.vis.global_.offwidth, image_size)
    model.vis.global_.offheight = max(model.vis.global_.offheight, image_size)
    try:
        renderer = mujoco.Renderer(model, image_size, image_size)
    except (ImportError, RuntimeError, mujoco.FatalError) as error:
        raise UserError(f"MuJoCo cannot open its renderer ({error}): unset MUJOCO_GL, or {INSTALL_OPENGL}") from error
    atexit.register(renderer.close)  # EGL reports errors if it shuts down before an unclosed renderer
    return renderer


def close_renderer(renderer: Any) -> None:
    atexit.unregister(renderer.close)
    renderer.close()


class MovableCamera:
    """A camera that is fixed to the world, and that can be moved relative to the pose it has in the model now."""

    def __init__(self, model: Any, name: str):
        self.camera = model.camera(name)
        self.position, self.quaternion = self.camera.pos.copy(), self.camera.quat.copy()

    def move(self, motion: CameraMotion) -> None:
        """Move the camera from its first pose. A motion of zeros restores that pose bit for bit."""
        import mujoco

        self.camera.pos, self.camera.quat = self.position, self.quaternion
        if motion == NO_MOTION:
            return
        rotation, quaternion = np.zeros(9), np.zeros(4)
        mujoco.mju_quat2Mat(rotation, self.quaternion / np.linalg.norm(self.quaternion))
        position, rotation = motion.apply(self.position, rotation.reshape(3, 3))
        mujoco.mju_mat2Quat(quaternion, rotation.reshape(-1))
        self.camera.pos, self.camera.quat = position, quaternion


def intrinsics(model: Any, camera: str, image_size: int) -> np.ndarray:
    """Return the intrinsics (3, 3): square pixels, with pixel centers at integers."""
    angle_of_view = np.deg2rad(model.camera(camera).fovy[0])
    focal, center = image_size / 2 / np.tan(angle_of_view / 2), (image_size - 1) / 2
    return np.array([[focal, 0, center], [0, focal, center], [0, 0, 1]], np.float32)


def pose(
    data: Any, camera: str, image_transform: np.ndarray = IDENTITY, world_transform: np.ndarray = IDENTITY
) -> np.ndarray:
    """Return the camera-to-world matrix (4, 4) float32.

    `image_transform` (3, 3) is the rotation or reflection that was applied to the image, `world_transform` (3, 3) the
    one that was applied to the world.
    """
    view = data.camera(camera)
    matrix = np.eye(4, dtype=np.float32)
    matrix[:3, :3] = world_transform @ view.xmat.reshape(3, 3) @ OPENGL_TO_OPENCV @ image_transform
    matrix[:3, 3] = world_transform @ view.xpos
    return matrix
