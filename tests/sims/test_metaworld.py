"""MetaWorld against lerobot's environment of the same tasks, and depth against MuJoCo's own ray caster.

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

from rocket_hf.sims.metaworld import MetaWorldEnvironment
from rocket_hf.sims.metaworld_tasks import GROUPS, INSTRUCTIONS
from rocket_hf.sims.suites import make_environment, select_tasks, task_names

SEEN_GROUPS = np.array([1, 1, 1, 0, 0, 0], np.uint8)  # of geoms: those that MuJoCo draws unless it is told otherwise


def lerobots_tasks():
    package = importlib.util.find_spec("lerobot").submodule_search_locations[0]
    return json.loads((Path(package) / "envs" / "metaworld_config.json").read_text())


def run_expert(environment, seed, steps):
    environment.reset(seed)
    for _ in range(steps):
        environment.step(environment.expert_action())


# Tasks


def test_tasks_and_groups_are_the_benchmarks():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert set(INSTRUCTIONS) == set(ALL_V3_ENVIRONMENTS)
    assert {name: set(tasks) for name, tasks in GROUPS.items()} == {
        name: set(tasks) for name, tasks in lerobots_tasks()["DIFFICULTY_TO_TASKS"].items()
    }


def test_every_task_has_a_sentence_of_its_own():
    assert len(set(INSTRUCTIONS.values())) == len(INSTRUCTIONS) == len(task_names("metaworld")) == 50


def test_tasks_are_chosen_by_name_and_by_group():
    assert select_tasks("metaworld", ["push-v3", "reach-v3,push-v3"]) == ["push-v3", "reach-v3"]
    assert select_tasks("metaworld", ["hard"]) == list(GROUPS["hard"])
    assert select_tasks("metaworld", ["all"]) == task_names("metaworld")


@pytest.mark.parametrize(
    ("suite", "task", "sentence"),
    [
        ("metaworld", "drawer-opn-v3", "MetaWorld has no task 'drawer-opn-v3': did you mean 'drawer-open-v3'?"),
        ("metaword", "drawer-open-v3", "rocket_hf has no suite 'metaword': did you mean 'metaworld'?"),
    ],
)
def test_what_is_mistyped_is_told(suite, task, sentence):
    with pytest.raises(ValueError) as told:
        make_environment(suite, task)
    assert str(told.value) == sentence


def test_an_unknown_camera_is_told():
    with pytest.raises(ValueError, match="no camera 'corner4': did you mean 'corner"):
        MetaWorldEnvironment("reach-v3", 32, cameras=("corner4",))


# Starts, steps and pictures


def test_the_same_seed_gives_the_same_pictures_in_another_process(make):
    program = """
import hashlib
from rocket_hf.sims.suites import make_environment
environment = make_environment("metaworld", "push-v3", 32)
environment.reset(11)
for _ in range(5):
    environment.step(environment.expert_action())
print(hashlib.sha256(b"".join(picture.tobytes() for picture in environment.observe().images.values())).hexdigest())
environment.close()
"""
    other = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    environment = make("push-v3")
    run_expert(environment, 3, 40)  # what came before leaves nothing behind
    run_expert(environment, 11, 5)
    pictures = b"".join(picture.tobytes() for picture in environment.observe().images.values())
    assert other.stdout.strip() == hashlib.sha256(pictures).hexdigest()
    assert other.stderr == ""


def test_another_seed_gives_another_start(make):
    environment = make("push-v3")
    environment.reset(0)
    first = environment.observe().images["corner2"]
    environment.reset(1)
    assert (environment.observe().images["corner2"] != first).any()


@pytest.mark.needs_lerobot
@pytest.mark.parametrize("task", ["window-open-v3", "push-v3"])
def test_starts_steps_and_views_are_those_of_lerobots_environment(task, make):
    """Bit for bit the same physics; and the same view of it, though lerobot's has shadows."""
    from lerobot.envs.metaworld import MetaworldEnv

    ours = make(task, image_size=96)
    ours.reset(5)
    start = ours.observe().state
    actions, states, solved = [], [], []
    for _ in range(4):
        actions.append(ours.expert_action())
        solved.append(ours.step(actions[-1]))
        states.append(ours._world.data.qpos.copy())
    last = ours.observe()

    theirs = MetaworldEnv(task, obs_type="pixels_agent_pos")  # after ours: its renderer expects to be the only one
    observed, _ = theirs.reset(seed=5)
    np.testing.assert_allclose(start, observed["agent_pos"], atol=1e-3)  # theirs is a tick old
    for action, positions, ended in zip(actions, states, solved, strict=True):
        observed, _, terminated, _, _ = theirs.step(action)
        np.testing.assert_array_equal(positions, theirs._env.data.qpos)
        assert terminated == ended
    np.testing.assert_array_equal(last.state, observed["agent_pos"].astype(np.float32))
    picture, as_theirs = last.images["corner2"], shrunk(observed["pixels"], 96)
    likeness = [np.corrcoef(each.ravel(), as_theirs.ravel())[0, 1] for each in (picture, picture[::-1, ::-1])]
    assert likeness[0] > 0.9 > likeness[1]
    theirs.close()


def shrunk(picture, size):
    """(480, 480, 3) to (size, size, 3), by means over blocks of pixels."""
    block = picture.shape[0] // size
    return picture[: block * size, : block * size].reshape(size, block, size, block, 3).mean(axis=(1, 3))


def test_a_start_is_drawn_where_physics_has_it(make):
    """MetaWorld moves the drawer after it has computed where all things are."""
    import mujoco

    environment = make("drawer-open-v3")
    environment.reset(9)
    at_once = environment.observe().images
    mujoco.mj_forward(environment._world.model, environment._world.data)
    for camera, picture in environment.observe().images.items():
        np.testing.assert_array_equal(at_once[camera], picture)


def test_observations_are_as_they_say(make):
    environment = make("reach-v3")
    environment.reset(0)
    observation = environment.observe()
    assert set(observation.images) == set(environment.cameras) == {"corner2", "gripperPOV"}
    assert all(image.shape == (32, 32, 3) and image.dtype == np.uint8 for image in observation.images.values())
    assert observation.state.shape == (len(environment.state_names),) and observation.state.dtype == np.float32
    action = environment.expert_action()
    assert action.shape == (len(environment.action_names),) and abs(action).max() <= 1
    assert environment.fps == round(1 / environment._world.dt)


def test_the_expert_solves_its_task_and_standing_still_does_not(make):
    environment = make("handle-press-v3")
    environment.reset(1)
    assert any(environment.step(environment.expert_action()) for _ in range(environment.max_steps))
    environment.reset(1)
    assert not any(environment.step(np.zeros(4)) for _ in range(20))


def test_actions_are_clipped(make):
    environment = make("reach-v3")
    ends = []
    for size in (1, 1000):
        environment.reset(2)
        for _ in range(5):
            environment.step(np.array([size, -size, size, size], np.float32))
        ends.append(environment.observe().state)
    np.testing.assert_array_equal(*ends)


def test_longer_episodes_than_metaworlds_can_be_asked_for():
    environment = MetaWorldEnvironment("reach-v3", 16, max_steps=510)
    environment.reset(0)
    for _ in range(environment.max_steps):
        environment.step(np.zeros(4))
    environment.close()


# Depth and poses


def world_points(view):
    """(height, width, 3) of all pixels."""
    rows, columns = np.indices(view.depth.shape)
    rays = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ np.linalg.inv(view.intrinsics).T
    return (rays * view.depth[..., None]) @ view.pose[:3, :3].T + view.pose[:3, 3]


def ray_point(world, start, towards, groups=SEEN_GROUPS):
    """Where a ray from `start` through `towards` first meets something that is drawn."""
    import mujoco

    direction = (towards - start) / np.linalg.norm(towards - start)
    met = np.zeros(1, np.int32)
    distance = mujoco.mj_ray(world.model, world.data, start, direction, groups, 1, -1, met)
    return start + distance * direction


@pytest.mark.parametrize("task", ["drawer-open-v3", "hammer-v3"])
def test_depth_and_poses_give_the_points_that_rays_meet(task, make):
    """At most three pixels in a hundred differ: those of edges, and of the marks that rays pass through."""
    environment = make(task, image_size=128)
    run_expert(environment, 4, 25)
    for camera, view in environment.depth_views().items():
        points = world_points(view)
        start = view.pose[:3, 3].astype(np.float64)
        rows, columns = (each.ravel() for each in np.mgrid[2:128:6, 2:128:6])
        close = view.depth[rows, columns] < 3  # the room's far walls are drawn to the horizon
        errors = [
            np.linalg.norm(
                ray_point(environment._world, start, points[row, column].astype(np.float64)) - points[row, column]
            )
            for row, column in zip(rows[close], columns[close], strict=True)
        ]
        assert len(errors) > 200
        assert np.mean(np.array(errors) < 0.01) > 0.97, camera


def test_the_goal_of_the_hand_is_found_where_its_red_mark_is_seen(make):
    """A site of known place, drawn as a small ball, seen by the fixed camera: unprojected to within its own size."""
    environment = make("reach-v3", image_size=128)
    environment.reset(6)
    view = environment.depth_views()["corner2"]
    goal = environment._world.data.site("goal").xpos
    seen = np.linalg.norm(world_points(view) - goal, axis=-1).min()
    size = environment._world.model.site("goal").size[0]
    assert abs(seen - size) < 0.01
    column, row = project(view, goal)
    red, green, blue = environment.observe().images["corner2"][round(row), round(column)].astype(int)
    assert red > 2 * max(green, blue) or green > 2 * max(red, blue)


def project(view, point):
    """Column and row of a world point."""
    in_camera = (np.linalg.inv(view.pose) @ np.append(point, 1))[:3]
    column, row, depth = view.intrinsics @ in_camera
    return column / depth, row / depth


def test_both_cameras_agree_on_what_both_see(make):
    environment = make("drawer-open-v3", image_size=128)
    run_expert(environment, 4, 25)
    views = environment.depth_views()
    fixed, points = views["corner2"], world_points(views["gripperPOV"]).reshape(-1, 3)
    in_fixed = (points - fixed.pose[:3, 3]) @ fixed.pose[:3, :3]  # the inverse of a rotation is its transpose
    pixels = in_fixed @ fixed.intrinsics.T
    columns, rows = np.rint(pixels[:, :2] / pixels[:, 2:]).astype(int).T
    inside = (columns >= 0) & (columns < 128) & (rows >= 0) & (rows < 128) & (in_fixed[:, 2] > 0)
    between = in_fixed[inside, 2] - fixed.depth[rows[inside], columns[inside]]
    assert inside.sum() > 1000
    assert np.mean(abs(between) < 0.01) > 0.3  # the fingers and the drawer hide the rest from one of the two
    assert np.mean(between < -0.01) < 0.02  # nothing is seen in front of what the other camera sees first
