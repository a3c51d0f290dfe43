"""Images of geometry, as further cameras of a policy: world coordinates, rays and depth of each pixel.

All are 8-bit images. Values outside of their range, such as the walls of the room, have the nearest level.
"""

import numpy as np

from .camera_motion import ORBIT_CENTER
from .environment import DepthView

# Further images of each kind, by the endings of their names: `corner2_xyz` and so on.
IMAGES_BY_INPUT = {
    "xyz": ("xyz",),
    "rays": ("ray_direction", "ray_moment"),
    "depth": ("gray_depth",),  # not `depth`, which is the column of a recording with metric depth
    "dummy": ("dummy",),
}
INPUTS_FROM_DEPTH = frozenset({"xyz", "depth"})
WORLD_LOW, WORLD_HIGH = np.array([-0.5, 0.2, -0.1]), np.array([0.5, 1.2, 0.9])  # meters: the workspace, 4 mm a level
MOMENT_LIMIT = 1.0  # meters; the length of a moment is the distance of the ray from the center
DEPTH_LIMIT = 2.0  # meters; objects are 1.1 to 1.5 m from corner2
DUMMY_LEVEL = 128


def geometry_images(kind: str, view: DepthView) -> dict[str, np.ndarray]:
    """Return the images of one kind by the endings of their names, each (height, width, 3) uint8."""
    if kind == "xyz":
        return {"xyz": encode(world_points(view), WORLD_LOW, WORLD_HIGH)}
    if kind == "rays":
        directions = ray_directions(view)
        moments = np.cross(view.pose[:3, 3] - ORBIT_CENTER, directions)
        return {
            "ray_direction": encode(directions, -1.0, 1.0),
            "ray_moment": encode(moments, -MOMENT_LIMIT, MOMENT_LIMIT),
        }
    if kind == "depth":
        return {"gray_depth": np.repeat(encode(view.depth[..., None], 0.0, DEPTH_LIMIT), 3, axis=-1)}
    return {"dummy": np.full((*view.depth.shape, 3), DUMMY_LEVEL, np.uint8)}


def encode(values: np.ndarray, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    """Return the level 0..255 of each value between `low` and `high`."""
    return np.rint(255 * np.clip((values - low) / (np.asarray(high) - low), 0, 1)).astype(np.uint8)


def decode(levels: np.ndarray, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    """Return the value of each level, which differs from the encoded one by at most half a level."""
    return low + (np.asarray(high) - low) * levels / 255


def pixel_rays(view: DepthView) -> np.ndarray:
    """Return the vector of each pixel in world coordinates, (height, width, 3), one meter along the optical axis."""
    rows, columns = np.indices(view.depth.shape)
    in_camera = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ np.linalg.inv(view.intrinsics).T
    return in_camera @ view.pose[:3, :3].T


def ray_directions(view: DepthView) -> np.ndarray:
    """Return the unit vector of each pixel's ray in world coordinates, (height, width, 3)."""
    rays = pixel_rays(view)
    return rays / np.linalg.norm(rays, axis=-1, keepdims=True)


def world_points(view: DepthView) -> np.ndarray:
    """Return the point that each pixel shows, in world coordinates, (height, width, 3)."""
    return view.pose[:3, 3] + view.depth[..., None] * pixel_rays(view)
