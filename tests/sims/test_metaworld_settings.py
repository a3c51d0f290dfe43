"""MetaWorld with settings: raised objects, moved cameras, states and computed images.

python -m pytest tests/sims/test_metaworld_settings.py
"""

import numpy as np
import pytest

from rocket_hf.sims.camera_motion import ORBIT_CENTER
from rocket_hf.sims.expert import solve
from rocket_hf.sims.geometry_images import WORLD_HIGH, WORLD_LOW, decode
from rocket_hf.sims.settings import parse_environment_name

from .test_metaworld import project, world_points

LEVEL = 1 / 255  # meters of one level of a map of world coordinates


@pytest.fixture
def make_variant(make_environment):
    def make(settings, task, **options):
        return make_environment(task, settings=parse_environment_name(f"metaworld:{settings}"), **options)

    return make


# Heights


@pytest.mark.parametrize("task", ["button-press-topdown-v3", "drawer-open-v3", "door-close-v3", "window-open-v3"])
def test_objects_rise_by_the_drawn_height_and_keep_their_place(task, make_environment, make_variant):
    plain, raised = make_environment(task), make_variant("heights=0..0.12", task)
    for seed in (0, 3, 100_000):
        height = parse_environment_name("metaworld:heights=0..0.12").draw_height(task, seed)
        positions = []
        for environment in (plain, raised, raised):  # twice, because raising must not accumulate
            environment.reset(seed)
            positions.append(environment._raw[4:7].copy())
        np.testing.assert_allclose(positions[1] - positions[0], [0, 0, height], atol=1e-9)
        np.testing.assert_array_equal(positions[1], positions[2])


@pytest.mark.parametrize(
    "task", ["button-press-topdown-v3", "button-press-v3", "drawer-open-v3", "window-open-v3", "door-close-v3"]
)
def test_expert_solves_tasks_with_raised_objects(task, make_variant):
    environment = make_variant("heights=0..0.12", task)
    assert all(solve(environment, seed) for seed in range(10))
    highest = make_variant("heights=0.12", task)
    assert all(solve(highest, seed) for seed in range(3))


def test_expert_reaches_goals_with_settings_other_than_heights(make_environment, make_variant):
    plain, variant = make_environment("reach-v3"), make_variant("cameras=corner2,state=object", "reach-v3")
    for seed in range(5):
        ours, theirs = (np.array(solve(environment, seed)) for environment in (variant, plain))
        assert len(ours) > 0
        np.testing.assert_array_equal(ours, theirs)


# Camera


def camera_pose(environment, seed=0):
    environment.reset(seed)
    return environment.depth_views()["corner2"]


def orbit_of(view):
    """Return azimuth and elevation in degrees, and distance in meters, of a camera as seen from the orbit's center."""
    x, y, z = view.pose[:3, 3] - ORBIT_CENTER
    return np.degrees(np.arctan2(y, x)), np.degrees(np.arctan2(z, np.hypot(x, y))), np.sqrt(x**2 + y**2 + z**2)


def test_camera_that_turns_by_a_right_angle_has_the_computed_position(make_variant):
    """corner2 is at (0.75, 0.075, 0.7), its offset from the center (0, 0.7, 0.1) is (0.75, -0.625, 0.6)."""
    view = camera_pose(make_variant("camera=fixed(90,0,0)", "reach-v3"))
    np.testing.assert_allclose(view.pose[:3, 3], [0.625, 1.45, 0.7], atol=1e-6)
    view = camera_pose(make_variant("camera=fixed(-90,0,0.1)", "reach-v3"))
    np.testing.assert_allclose(view.pose[:3, 3], [-0.6875, -0.125, 0.76], atol=1e-6)


@pytest.mark.parametrize("motion", [(5, 0, 0), (-20, 10, 0.1), (0, -15, -0.2), (170, 5, 0)])
def test_fixed_motion_is_measured_in_the_poses(motion, make_environment, make_variant):
    plain = camera_pose(make_environment("reach-v3"))
    moved = camera_pose(make_variant(f"camera=fixed({','.join(map(str, motion))})", "reach-v3"))
    azimuth, elevation, distance = (new - old for new, old in zip(orbit_of(moved), orbit_of(plain), strict=True))
    assert (azimuth + 180) % 360 - 180 == pytest.approx(motion[0], abs=1e-3)
    assert elevation == pytest.approx(motion[1], abs=1e-3)
    assert distance == pytest.approx(motion[2] * orbit_of(plain)[2], abs=1e-5)
    np.testing.assert_allclose(project(moved, ORBIT_CENTER), project(plain, ORBIT_CENTER), atol=1e-3)
    rotation = moved.pose[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
    # The image does not tilt: the camera's horizontal axis keeps its slope for turns about the vertical axis.
    if motion[1:] == (0, 0):
        np.testing.assert_allclose(moved.pose[2, :3], plain.pose[2, :3], atol=1e-6)


def test_camera_moves_as_far_as_computed(make_environment, make_variant):
    """A turn by a moves the camera by 2 sin(a / 2) times its horizontal distance of 0.976 m to the center."""
    start = camera_pose(make_environment("reach-v3")).pose[:3, 3]
    for angle, expected in ((5, 0.09), (10, 0.17), (15, 0.25), (20, 0.34)):
        moved = camera_pose(make_variant(f"camera=fixed({angle},0,0)", "reach-v3")).pose[:3, 3]
        assert np.linalg.norm(moved - start) == pytest.approx(expected, abs=0.006)


def test_random_motion_is_drawn_for_each_episode_and_changes_nothing_else(make_environment, make_variant):
    settings = "camera=random(20,10,0.1,0.05)"
    plain, variant = make_environment("drawer-open-v3"), make_variant(settings, "drawer-open-v3")
    start = orbit_of(camera_pose(plain))
    draw = parse_environment_name(f"metaworld:{settings}").draw_camera_motion
    usual_pixel = project(camera_pose(plain), ORBIT_CENTER)
    for seed in range(6):
        first, again = camera_pose(variant, seed), camera_pose(variant, seed)
        motion = draw("drawer-open-v3", seed)
        np.testing.assert_array_equal(first.pose, again.pose)
        azimuth, elevation, distance = orbit_of(first)
        assert azimuth - start[0] == pytest.approx(motion.azimuth, abs=1e-3)
        assert elevation - start[1] == pytest.approx(motion.elevation, abs=1e-3)
        assert distance / start[2] - 1 == pytest.approx(motion.distance, abs=1e-5)
        np.testing.assert_allclose(project(first, ORBIT_CENTER + motion.aim), usual_pixel, atol=1e-3)
        plain.reset(seed)
        np.testing.assert_array_equal(variant._raw, plain._raw)
        np.testing.assert_array_equal(
            variant.depth_views()["gripperPOV"].depth, plain.depth_views()["gripperPOV"].depth
        )


def test_camera_returns_to_its_place_bit_for_bit(make_environment):
    """A motion of zeros gives the images of the environment without the setting, also after other motions."""
    environment = make_environment("reach-v3", settings=parse_environment_name("metaworld:camera=fixed(10,0,0)"))
    environment.reset(1)
    moved = environment.observe().images["corner2"]
    plain = make_environment("reach-v3")
    plain.reset(1)
    expected = plain.observe().images
    assert (moved != expected["corner2"]).mean() > 0.1
    environment.settings = parse_environment_name("metaworld")
    environment.reset(1)
    environment.settings = parse_environment_name("metaworld:camera=fixed(10,0,0)")
    for camera, image in environment.observe().images.items():
        np.testing.assert_array_equal(image, expected[camera])


# States and cameras


def test_environment_has_the_cameras_and_the_state_of_its_settings(make_variant):
    environment = make_variant("cameras=corner2,state=none", "drawer-open-v3")
    environment.reset(2)
    for _ in range(3):
        environment.step(environment.expert_action())
        observation = environment.observe()
        assert list(observation.images) == ["corner2"] == list(environment.depth_views())
        assert observation.state.dtype == np.float32 and not observation.state.any() and observation.state.shape == (4,)


def test_state_contains_the_position_of_the_object_or_goal(make_environment, make_variant):
    drawer = make_variant("state=object", "drawer-open-v3")
    drawer.reset(4)
    for _ in range(60):
        drawer.step(drawer.expert_action())
    simulation = drawer._wrapped_env.data
    handle = simulation.body("drawer_link").xpos + np.array([0, -0.16, 0])
    state = drawer.observe().state
    assert state.dtype == np.float32 and len(drawer.state_names) == 7
    np.testing.assert_allclose(state[4:], handle, atol=2e-3)  # MetaWorld's observation is one tick older
    np.testing.assert_array_equal(state[:4], drawer._raw[:4].astype(np.float32))
    reach = make_variant("state=object", "reach-v3")
    reach.reset(4)
    np.testing.assert_allclose(reach.observe().state[4:], reach._wrapped_env.data.site("goal").xpos, atol=1e-6)


# Computed images


@pytest.mark.parametrize("camera", ["fixed(0,0,0)", "fixed(15,-5,0.1)", "random(20,10,0.1,0.05)"])
def test_projected_goal_is_where_the_map_has_its_position(camera, make_variant):
    """The map shows the near surface of the goal, which is a ball."""
    environment = make_variant(f"camera={camera},inputs=xyz", "reach-v3", image_size=128)
    for seed in (6, 7):
        environment.reset(seed)
        goal = environment._wrapped_env.data.site("goal").xpos
        radius = environment._wrapped_env.model.site("goal").size[0]
        view = environment.depth_views()["corner2"]
        column, row = (round(value) for value in project(view, goal))
        shown = decode(environment.observe().images["corner2_xyz"][row, column], WORLD_LOW, WORLD_HIGH)
        distance = np.linalg.norm(view.pose[:3, 3] - goal)
        surface = goal + radius * (view.pose[:3, 3] - goal) / distance
        pixel = distance / view.intrinsics[0, 0]  # its side in meters
        assert pixel < 0.012 and np.linalg.norm(shown - surface) < pixel * 0.71 + LEVEL


def test_map_has_the_point_of_each_pixel(make_variant):
    environment = make_variant("heights=0.1,camera=fixed(10,0,0),inputs=xyz+depth", "window-open-v3", image_size=64)
    environment.reset(5)
    images, view = environment.observe().images, environment.depth_views()["corner2"]
    points = world_points(view)
    is_inside = ((points > WORLD_LOW) & (points < WORLD_HIGH)).all(axis=-1)
    assert is_inside.mean() > 0.2
    decoded = decode(images["corner2_xyz"], WORLD_LOW, WORLD_HIGH)
    assert abs(decoded - points)[is_inside].max() <= LEVEL / 2 + 1e-5
    expected = np.clip(view.depth, 0, 2) * 255 / 2
    assert abs(images["corner2_gray_depth"] - expected[..., None]).max() <= 0.5 + 1e-4


def test_rays_meet_the_points_that_they_show(make_variant):
    environment = make_variant("camera=fixed(10,0,0),inputs=rays", "reach-v3", image_size=64)
    environment.reset(5)
    images, view = environment.observe().images, environment.depth_views()["corner2"]
    directions = decode(images["corner2_ray_direction"], -1, 1)
    moments = decode(images["corner2_ray_moment"], -1, 1)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=-1), 1, atol=0.01)
    middle = directions[31:33, 31:33].mean(axis=(0, 1))
    np.testing.assert_allclose(middle, view.pose[:3, 2], atol=0.01)  # the optical axis
    points = world_points(view) - ORBIT_CENTER
    is_near = view.depth < 1.6
    assert is_near.mean() > 0.2
    np.testing.assert_allclose(moments[is_near], np.cross(points, directions)[is_near], atol=0.02)


def test_dummy_image_is_constant_and_images_have_their_order(make_variant):
    environment = make_variant("cameras=corner2,inputs=xyz+rays+depth+dummy", "drawer-open-v3")
    environment.reset(0)
    images = environment.observe().images
    assert tuple(images) == environment.image_names and len(images) == 6
    assert all(image.shape == (32, 32, 3) and image.dtype == np.uint8 for image in images.values())
    assert (images["corner2_dummy"] == 128).all()
    environment.step(environment.expert_action())
    assert (environment.observe().images["corner2_dummy"] == 128).all()


def test_computed_images_do_not_change_the_cameras_images(make_environment, make_variant):
    plain, variant = make_environment("drawer-open-v3"), make_variant("inputs=xyz+rays", "drawer-open-v3")
    for environment in (plain, variant):
        environment.reset(3)
    for _ in range(3):
        expected = plain.observe().images
        images = variant.observe().images
        assert list(images)[: len(expected)] == list(expected)
        for camera, image in expected.items():
            np.testing.assert_array_equal(images[camera], image)
        action = plain.expert_action()
        for environment in (plain, variant):
            environment.step(action)
