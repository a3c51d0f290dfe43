"""Environments of LIBERO, compared with lerobot's: initial states, steps, images, depth; the expert; evaluations.

make test-libero
"""

import json
import sys

import numpy as np
import pytest

from rocket_hf.commands import main
from rocket_hf.evaluation.report import REPORT
from rocket_hf.export.policy_folder import export_policy
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.sims.libero import MIRRORED_WORLD, LiberoEnvironment
from rocket_hf.sims.libero_files import import_libero
from rocket_hf.tiny import character_tokenizer, tiny_statistics

from ..evaluation.conftest import tiny_policy
from .test_metaworld import ray_point, world_points

pytestmark = [pytest.mark.needs_libero, pytest.mark.needs_lerobot]
TASK, SIZE = "libero_spatial/1", 64
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (3, 7))
VISUAL_GROUP = np.array([0, 1, 0, 0, 0, 0], np.uint8)  # group of geoms that are rendered and have no collisions


@pytest.fixture(scope="module")
def lerobot_rollout():
    """Processed observations of lerobot's environment after a reset and some steps, and its joint positions.

    lerobot's environment runs before ours, because its renderer must be the only one.
    """
    import_libero()
    from lerobot.envs.libero import LiberoEnv, _get_suite
    from lerobot.envs.utils import preprocess_observation
    from lerobot.processor.env_processor import LiberoProcessorStep

    environment = LiberoEnv(
        _get_suite("libero_spatial"), 1, "libero_spatial", obs_type="pixels_agent_pos", episode_index=7,
        observation_width=SIZE, observation_height=SIZE,
    )  # fmt: skip
    observations = [environment.reset(seed=7)[0]] + [environment.step(action)[0] for action in ACTIONS]
    positions = environment._env.sim.data.qpos.copy()
    environment.close()
    batches = [{"pixels": one["pixels"], "robot_state": batched(one["robot_state"])} for one in observations]
    return [LiberoProcessorStep().observation(preprocess_observation(one)) for one in batches], positions


def batched(values):
    return {name: batched(one) if isinstance(one, dict) else one[None] for name, one in values.items()}


@pytest.fixture(scope="module")
def environment(lerobot_rollout):
    environment = LiberoEnvironment(TASK, SIZE)
    yield environment
    environment.close()


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    robot = {"cameras": ["image", "image2"], "state_dim": 8, "action_dim": 7}
    model, _ = tiny_policy(**robot)
    processor = RocketProcessor.for_config(
        model.config, character_tokenizer(), tiny_statistics(model.config), max_prompt_length=128
    )
    return export_policy(model, processor, tmp_path_factory.mktemp("policy") / "tiny")


# Initial states, steps and images


def test_initial_states_steps_and_images_equal_lerobot(environment, lerobot_rollout):
    """They are identical bit for bit, and do not depend on earlier episodes."""
    theirs, positions = lerobot_rollout
    environment.reset(3)
    environment.observe()
    environment.step(ACTIONS[0])
    environment.reset(7)
    for number, expected in enumerate(theirs):
        if number:
            environment.step(ACTIONS[number - 1])
        observation = environment.observe()
        for camera, image in observation.images.items():
            expected_image = (
                expected[f"observation.images.{camera}"][0].permute(1, 2, 0).mul(255).round().byte().numpy()
            )
            np.testing.assert_array_equal(image, expected_image)
        np.testing.assert_allclose(observation.state, expected["observation.state"][0].numpy(), atol=1e-5)
    np.testing.assert_array_equal(environment._control_env.sim.data.qpos, positions)


def test_instruction_and_limit_equal_benchmark(environment):
    assert environment.instruction == "pick up the black bowl next to the ramekin and place it on the plate"
    assert (environment.max_steps, environment.fps) == (220, 20)


def test_seeds_select_stored_initial_states_in_order(environment):
    states = []
    for seed in (0, 50, 1, 1_000_000):
        environment.reset(seed)
        states.append(environment._control_env.sim.data.qpos.copy())
    assert abs(states[0] - states[1]).max() < 0.02, "the same stored state"
    assert abs(states[0] - states[2]).max() > 0.01
    assert abs(states[2] - states[3]).max() < 0.02, "a retry of a failed expert uses the next state"


def test_depth_and_poses_agree_with_ray_casting_in_mirrored_world(environment):
    environment.reset(4)
    images = environment.observe().images
    for camera, view in environment.depth_views().items():
        assert view.depth.shape == images[camera].shape[:2] and view.depth.dtype == np.float32
        assert np.linalg.det(view.pose[:3, :3]) == pytest.approx(1, abs=1e-5)
        points = world_points(view) @ MIRRORED_WORLD
        start = (MIRRORED_WORLD @ view.pose[:3, 3]).astype(np.float64)
        rows, columns = (each.ravel() for each in np.mgrid[2:SIZE:4, 2:SIZE:4])
        errors = [
            np.linalg.norm(hit_point(environment, start, points[row, column]) - points[row, column])
            for row, column in zip(rows, columns, strict=True)
        ]
        assert np.mean(np.array(errors) < 0.01) > 0.9, camera


def hit_point(environment, start, towards):
    return ray_point(environment._snapshot, start, towards.astype(np.float64), VISUAL_GROUP)


# Expert and evaluations


def test_expert_solves_task_and_is_recorded(tmp_path, capsys):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    folder = tmp_path / "demonstrations"
    command = ["simulate", "libero", "--tasks", "libero_spatial/2", "--episodes", "1", "--workers", "1", "--depth"]
    assert main([*command, "--image-size", "32", "--out", str(folder)]) == 0, capsys.readouterr().err
    dataset = LeRobotDataset("local/demonstrations", root=folder)
    assert dataset.num_episodes == 1 and 50 < dataset.num_frames <= 220
    last = dataset[dataset.num_frames - 1]
    assert last["next.success"].item() and last["task"].startswith("pick up the black bowl from table center")
    assert last["observation.state"].shape == (8,) and last["action"].shape == (7,)


def test_policy_is_evaluated_with_benchmark_protocol(policy, tmp_path, capsys):
    command = ["eval", str(policy), "--env", "libero", "--tasks", TASK, "--episodes", "1", "--workers", "0"]
    videos = ["--videos", str(tmp_path / "videos")]
    assert main([*command, "--max-steps", "3", "--image-size", "32", "--out", str(tmp_path), *videos]) == 0, (
        capsys.readouterr().err
    )
    (episode,) = json.loads((tmp_path / REPORT).read_text())["episodes"]
    assert (episode["task"], episode["steps"], episode["success"]) == (TASK, 3, False)
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["libero_spatial-1-100000-failure.mp4"]


def test_lerobot_eval_runs_exported_policy(policy, tmp_path, monkeypatch):
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
