"""LIBERO's worlds against lerobot's own: starts, steps, pictures, depth; the expert; evaluations of both.

make test-libero
"""

import json
import sys

import numpy as np
import pytest

from rocket_hf.commands import main
from rocket_hf.evaluation.report import REPORT
from rocket_hf.export.export_files import export_policy
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.sims.libero import MIRRORED_WORLD, LiberoEnvironment
from rocket_hf.sims.libero_files import import_libero
from rocket_hf.tiny import character_tokenizer, tiny_statistics

from ..evaluation.conftest import tiny_policy
from .test_metaworld import ray_point, world_points

pytestmark = [pytest.mark.needs_libero, pytest.mark.needs_lerobot]
TASK, SIZE = "libero_spatial/1", 64
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (3, 7))
DRAWN = np.array([0, 1, 0, 0, 0, 0], np.uint8)  # the group of geoms that are drawn, and touch nothing


@pytest.fixture(scope="module")
def lerobots():
    """What lerobot's environment shows, by its own processor, of a start and of the steps from it. It comes before
    ours, because its renderer expects to be the only one."""
    import_libero()
    from lerobot.envs.libero import LiberoEnv, _get_suite
    from lerobot.envs.utils import preprocess_observation
    from lerobot.processor.env_processor import LiberoProcessorStep

    environment = LiberoEnv(
        _get_suite("libero_spatial"), 1, "libero_spatial", obs_type="pixels_agent_pos", episode_index=7,
        observation_width=SIZE, observation_height=SIZE,
    )  # fmt: skip
    seen = [environment.reset(seed=7)[0]] + [environment.step(action)[0] for action in ACTIONS]
    positions = environment._env.sim.data.qpos.copy()
    environment.close()
    batches = [{"pixels": one["pixels"], "robot_state": batched(one["robot_state"])} for one in seen]
    return [LiberoProcessorStep().observation(preprocess_observation(one)) for one in batches], positions


def batched(values):
    return {name: batched(one) if isinstance(one, dict) else one[None] for name, one in values.items()}


@pytest.fixture(scope="module")
def environment(lerobots):
    made = LiberoEnvironment(TASK, SIZE)
    yield made
    made.close()


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    robot = {"cameras": ["image", "image2"], "state_dim": 8, "action_dim": 7}
    model, _ = tiny_policy(**robot)
    processor = RocketProcessor.for_config(
        model.config, character_tokenizer(), tiny_statistics(model.config), max_prompt_length=128
    )
    return export_policy(model, processor, tmp_path_factory.mktemp("policy") / "tiny")


# Starts, steps and pictures


def test_starts_steps_states_and_pictures_are_lerobots(environment, lerobots):
    """Bit for bit, whatever was played before."""
    theirs, positions = lerobots
    environment.reset(3)
    environment.observe()
    environment.step(ACTIONS[0])
    environment.reset(7)
    for number, wanted in enumerate(theirs):
        if number:
            environment.step(ACTIONS[number - 1])
        seen = environment.observe()
        for camera, picture in seen.images.items():
            as_theirs = wanted[f"observation.images.{camera}"][0].permute(1, 2, 0).mul(255).round().byte().numpy()
            np.testing.assert_array_equal(picture, as_theirs)
        np.testing.assert_allclose(seen.state, wanted["observation.state"][0].numpy(), atol=1e-5)
    np.testing.assert_array_equal(environment._world.sim.data.qpos, positions)


def test_the_instruction_is_the_benchmarks(environment):
    assert environment.instruction == "pick up the black bowl next to the ramekin and place it on the plate"
    assert (environment.max_steps, environment.fps) == (220, 20)


def test_seeds_take_the_stored_starts_in_turn(environment):
    starts = []
    for seed in (0, 50, 1, 1_000_000):
        environment.reset(seed)
        starts.append(environment._world.sim.data.qpos.copy())
    assert abs(starts[0] - starts[1]).max() < 0.02, "the same stored start"
    assert abs(starts[0] - starts[2]).max() > 0.01
    assert abs(starts[2] - starts[3]).max() < 0.02, "where the expert fails, the next start is tried"


def test_depth_and_poses_give_the_points_that_rays_meet_in_the_mirrored_world(environment):
    environment.reset(4)
    pictures = environment.observe().images
    for camera, view in environment.depth_views().items():
        assert view.depth.shape == pictures[camera].shape[:2] and view.depth.dtype == np.float32
        assert np.linalg.det(view.pose[:3, :3]) == pytest.approx(1, abs=1e-5)
        points = world_points(view) @ MIRRORED_WORLD
        start = (MIRRORED_WORLD @ view.pose[:3, 3]).astype(np.float64)
        rows, columns = (each.ravel() for each in np.mgrid[2:SIZE:4, 2:SIZE:4])
        errors = [
            np.linalg.norm(ray_to(environment, start, points[row, column]) - points[row, column])
            for row, column in zip(rows, columns, strict=True)
        ]
        assert np.mean(np.array(errors) < 0.01) > 0.9, camera


def ray_to(environment, start, towards):
    return ray_point(environment._moment, start, towards.astype(np.float64), DRAWN)


# The expert, and evaluations


def test_the_expert_puts_the_bowl_on_the_plate_and_is_recorded(tmp_path, capsys):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    folder = tmp_path / "demonstrations"
    command = ["simulate", "libero", "--tasks", "libero_spatial/2", "--episodes", "1", "--workers", "1", "--depth"]
    assert main([*command, "--image-size", "32", "--out", str(folder)]) == 0, capsys.readouterr().err
    dataset = LeRobotDataset("local/demonstrations", root=folder)
    assert dataset.num_episodes == 1 and 50 < dataset.num_frames <= 220
    last = dataset[dataset.num_frames - 1]
    assert last["next.success"].item() and last["task"].startswith("pick up the black bowl from table center")
    assert last["observation.state"].shape == (8,) and last["action"].shape == (7,)


def test_a_policy_is_evaluated_under_the_benchmarks_protocol(policy, tmp_path, capsys):
    command = ["eval", str(policy), "--env", "libero", "--tasks", TASK, "--episodes", "1", "--workers", "0"]
    videos = ["--videos", str(tmp_path / "videos")]
    assert main([*command, "--max-steps", "3", "--image-size", "32", "--out", str(tmp_path), *videos]) == 0, (
        capsys.readouterr().err
    )
    (episode,) = json.loads((tmp_path / REPORT).read_text())["episodes"]
    assert (episode["task"], episode["steps"], episode["success"]) == (TASK, 3, False)
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["libero_spatial-1-100000-failure.mp4"]


def test_lerobots_own_evaluation_runs_our_policy(policy, tmp_path, monkeypatch):
    import_libero()
    from lerobot.scripts import lerobot_eval

    monkeypatch.setattr(sys, "argv", [
        "lerobot-eval", f"--policy.path={policy}", "--policy.device=cpu", "--env.type=libero",
        "--env.task=libero_spatial", "--env.task_ids=[1]", "--env.episode_length=2", "--env.observation_height=32",
        "--env.observation_width=32", "--eval.n_episodes=1", "--eval.batch_size=1", "--eval.use_async_envs=false",
        f"--output_dir={tmp_path / 'out'}",
    ])  # fmt: skip
    lerobot_eval.main()
    (task,) = json.loads((tmp_path / "out" / "eval_info.json").read_text())["per_task"]
    assert task["metrics"]["successes"] == [False]
