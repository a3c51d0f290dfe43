"""MetaWorld, compared with lerobot's environment of the same tasks, and depth compared with MuJoCo's ray casting.

python -m pytest tests/sims/test_metaworld.py
"""

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rocket_hf.errors import UserError
from rocket_hf.sims.headless import use_offscreen_rendering
from rocket_hf.sims.metaworld import MetaWorldEnvironment
from rocket_hf.sims.metaworld_tasks import INSTRUCTIONS, TASK_GROUPS
from rocket_hf.sims.suites import make_environment as make_suite_environment
from rocket_hf.sims.suites import select_tasks, task_names

RENDERED_GROUPS = np.array([1, 1, 1, 0, 0, 0], np.uint8)  # groups of geoms that MuJoCo renders by default


def read_lerobot_tasks():
    package = importlib.util.find_spec("lerobot").submodule_search_locations[0]
    return json.loads((Path(package) / "envs" / "metaworld_config.json").read_text())


def run_expert(environment, seed, steps):
    environment.reset(seed)
    for _ in range(steps):
        environment.step(environment.expert_action())


# Tasks


def test_tasks_and_groups_equal_benchmark():
    use_offscreen_rendering()  # must precede the import of metaworld, which imports mujoco
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert set(INSTRUCTIONS) == set(ALL_V3_ENVIRONMENTS)
    assert {name: set(tasks) for name, tasks in TASK_GROUPS.items()} == {
        name: set(tasks) for name, tasks in read_lerobot_tasks()["DIFFICULTY_TO_TASKS"].items()
    }


def test_every_task_has_its_own_instruction():
    assert len(set(INSTRUCTIONS.values())) == len(INSTRUCTIONS) == len(task_names("metaworld")) == 50


def test_tasks_are_selected_by_name_and_group():
    assert select_tasks("metaworld", ["push-v3", "reach-v3,push-v3"]) == ["push-v3", "reach-v3"]
    assert select_tasks("metaworld", ["hard"]) == list(TASK_GROUPS["hard"])
    assert select_tasks("metaworld", ["all"]) == task_names("metaworld")


@pytest.mark.parametrize(
    ("suite", "task", "message"),
    [
        ("metaworld", "drawer-opn-v3", "MetaWorld has no task 'drawer-opn-v3': did you mean 'drawer-open-v3'?"),
        ("metaword", "drawer-open-v3", "rocket-hf has no suite 'metaword': did you mean 'metaworld'?"),
    ],
)
def test_mistyped_name_raises_with_suggestion(suite, task, message):
    with pytest.raises(UserError) as raised:
        make_suite_environment(suite, task)
    assert str(raised.value) == message


def test_unknown_camera_raises_with_suggestion():
    with pytest.raises(UserError, match="no camera 'corner4': did you mean 'corner"):
        make_suite_environment("metaworld:cameras=corner4", "reach-v3", 32)


# Initial states, steps and images


def test_same_seed_gives_same_images_in_other_process(make_environment):
    program = """
import hashlib
from rocket_hf.sims.suites import make_environment
environment = make_environment("metaworld", "push-v3", 32)
environment.reset(11)
for _ in range(5):
    environment.step(environment.expert_action())
print(hashlib.sha256(b"".join(image.tobytes() for image in environment.observe().images.values())).hexdigest())
environment.close()
"""
    other = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    environment = make_environment("push-v3")
    run_expert(environment, 3, 40)  # an earlier episode must not influence the next one
    run_expert(environment, 11, 5)
    images = b"".join(image.tobytes() for image in environment.observe().images.values())
    assert other.stdout.strip() == hashlib.sha256(images).hexdigest()
    assert other.stderr == ""


def test_other_seed_gives_other_initial_state(make_environment):
    environment = make_environment("push-v3")
    environment.reset(0)
    first = environment.observe().images["corner2"]
    environment.reset(1)
    assert (environment.observe().images["corner2"] != first).any()


@pytest.mark.needs_lerobot
@pytest.mark.parametrize("task", ["window-open-v3", "push-v3"])
def test_initial_states_steps_and_views_equal_lerobot(task, make_environment):
    """The physics is identical bit for bit. The view is the same, although lerobot renders shadows."""
    from lerobot.envs.metaworld import MetaworldEnv

    ours = make_environment(task, image_size=96)
    ours.reset(5)
    start = ours.observe().state
    actions, states, successes = [], [], []
    for _ in range(4):
        actions.append(ours.expert_action())
        successes.append(ours.step(actions[-1]))
        states.append(ours._wrapped_env.data.qpos.copy())
    last = ours.observe()

    theirs = MetaworldEnv(
        task, obs_type="pixels_agent_pos"
    )  # created after ours, because its renderer must be the only one
    observed, _ = theirs.reset(seed=5)
    np.testing.assert_allclose(start, observed["agent_pos"], atol=1e-3)  # lerobot's state is one tick older
    for action, positions, success in zip(actions, states, successes, strict=True):
        observed, _, terminated, _, _ = theirs.step(action)
        np.testing.assert_array_equal(positions, theirs._env.data.qpos)
        assert terminated == success
    np.testing.assert_array_equal(last.state, observed["agent_pos"].astype(np.float32))
    image, expected = last.images["corner2"], downsample(observed["pixels"], 96)
    correlations = [np.corrcoef(each.ravel(), expected.ravel())[0, 1] for each in (image, image[::-1, ::-1])]
    assert correlations[0] > 0.9 > correlations[1]
    theirs.close()


def downsample(image, size):
    """Average blocks of pixels: (480, 480, 3) to (size, size, 3)."""
    block = image.shape[0] // size
    return image[: block * size, : block * size].reshape(size, block, size, block, 3).mean(axis=(1, 3))


def test_initial_image_shows_poses_of_physics(make_environment):
    """MetaWorld moves the drawer after it has computed the poses of all bodies."""
    import mujoco

    environment = make_environment("drawer-open-v3")
    environment.reset(9)
    first_images = environment.observe().images
    mujoco.mj_forward(environment._wrapped_env.model, environment._wrapped_env.data)
    for camera, image in environment.observe().images.items():
        np.testing.assert_array_equal(first_images[camera], image)


def test_observations_and_actions_have_declared_shapes(make_environment):
    environment = make_environment("reach-v3")
    environment.reset(0)
    observation = environment.observe()
    assert set(observation.images) == set(environment.cameras) == {"corner2", "gripperPOV"}
    assert all(image.shape == (32, 32, 3) and image.dtype == np.uint8 for image in observation.images.values())
    assert observation.state.shape == (len(environment.state_names),) and observation.state.dtype == np.float32
    action = environment.expert_action()
    assert action.shape == (len(environment.action_names),) and abs(action).max() <= 1
    assert environment.fps == round(1 / environment._wrapped_env.dt)


def test_expert_solves_task_and_idle_robot_does_not(make_environment):
    environment = make_environment("handle-press-v3")
    environment.reset(1)
    assert any(environment.step(environment.expert_action()) for _ in range(environment.max_steps))
    environment.reset(1)
    assert not any(environment.step(np.zeros(4)) for _ in range(20))


def test_actions_are_clipped(make_environment):
    environment = make_environment("reach-v3")
    states = []
    for size in (1, 1000):
        environment.reset(2)
        for _ in range(5):
            environment.step(np.array([size, -size, size, size], np.float32))
        states.append(environment.observe().state)
    np.testing.assert_array_equal(*states)


def test_episodes_may_be_longer_than_metaworlds_limit():
    environment = MetaWorldEnvironment("reach-v3", 16, max_steps=510)
    environment.reset(0)
    for _ in range(environment.max_steps):
        environment.step(np.zeros(4))
    environment.close()


# Depth and poses


def world_points(view):
    """Unproject all pixels to world coordinates: (height, width, 3)."""
    rows, columns = np.indices(view.depth.shape)
    rays = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ np.linalg.inv(view.intrinsics).T
    return (rays * view.depth[..., None]) @ view.pose[:3, :3].T + view.pose[:3, 3]


def ray_point(simulation, start, towards, groups=RENDERED_GROUPS):
    """Return the first point at which a ray from `start` through `towards` hits a rendered geom."""
    import mujoco

    direction = (towards - start) / np.linalg.norm(towards - start)
    geom = np.zeros(1, np.int32)
    distance = mujoco.mj_ray(simulation.model, simulation.data, start, direction, groups, 1, -1, geom)
    return start + distance * direction


@pytest.mark.parametrize("task", ["drawer-open-v3", "hammer-v3"])
def test_depth_and_poses_agree_with_ray_casting(task, make_environment):
    """At most 3 % of the pixels differ: edges, and markers that rays pass through."""
    environment = make_environment(task, image_size=128)
    run_expert(environment, 4, 25)
    for camera, view in environment.depth_views().items():
        points = world_points(view)
        start = view.pose[:3, 3].astype(np.float64)
        rows, columns = (each.ravel() for each in np.mgrid[2:128:6, 2:128:6])
        is_near = view.depth[rows, columns] < 3  # the room's far walls extend to the horizon
        errors = [
            np.linalg.norm(
                ray_point(environment._wrapped_env, start, points[row, column].astype(np.float64)) - points[row, column]
            )
            for row, column in zip(rows[is_near], columns[is_near], strict=True)
        ]
        assert len(errors) > 200
        assert np.mean(np.array(errors) < 0.01) > 0.97, camera


def test_goal_marker_is_unprojected_to_its_position(make_environment):
    """The goal is rendered as a small ball. Its pixels must be unprojected to the ball's surface."""
    environment = make_environment("reach-v3", image_size=128)
    environment.reset(6)
    view = environment.depth_views()["corner2"]
    goal = environment._wrapped_env.data.site("goal").xpos
    distance = np.linalg.norm(world_points(view) - goal, axis=-1).min()
    size = environment._wrapped_env.model.site("goal").size[0]
    assert abs(distance - size) < 0.01
    column, row = project(view, goal)
    red, green, blue = environment.observe().images["corner2"][round(row), round(column)].astype(int)
    assert red > 2 * max(green, blue) or green > 2 * max(red, blue)


def project(view, point):
    """Project a point in world coordinates to column and row."""
    in_camera = (np.linalg.inv(view.pose) @ np.append(point, 1))[:3]
    column, row, depth = view.intrinsics @ in_camera
    return column / depth, row / depth


def test_depth_of_both_cameras_agrees(make_environment):
    environment = make_environment("drawer-open-v3", image_size=128)
    run_expert(environment, 4, 25)
    views = environment.depth_views()
    fixed, points = views["corner2"], world_points(views["gripperPOV"]).reshape(-1, 3)
    in_fixed = (points - fixed.pose[:3, 3]) @ fixed.pose[:3, :3]  # the inverse of a rotation is its transpose
    pixels = in_fixed @ fixed.intrinsics.T
    columns, rows = np.rint(pixels[:, :2] / pixels[:, 2:]).astype(int).T
    is_inside = (columns >= 0) & (columns < 128) & (rows >= 0) & (rows < 128) & (in_fixed[:, 2] > 0)
    differences = in_fixed[is_inside, 2] - fixed.depth[rows[is_inside], columns[is_inside]]
    assert is_inside.sum() > 1000
    assert np.mean(abs(differences) < 0.01) > 0.3  # the rest is occluded by fingers or drawer in one of the views
    assert np.mean(differences < -0.01) < 0.02  # no point is in front of the other camera's first surface
