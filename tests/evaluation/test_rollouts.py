"""Rollouts of policies in an environment without a simulator."""

from functools import partial

import numpy as np
import pytest

from rocket_hf.evaluation.episode_simulator import EpisodeSimulator, EpisodeStart, RobotInterface, StepRequest
from rocket_hf.evaluation.policy_runner import PolicyInput, PolicyRunner
from rocket_hf.evaluation.rollouts import run_episodes, take_start
from rocket_hf.sims.process_pool import SimulatorPool

from .conftest import tiny_policy
from .point_environment import PointEnvironment

STARTS = [EpisodeStart(task, seed) for seed in range(8) for task in ("near", "nearer")]


def run_points(runner, parallel=4, starts=STARTS, processes=0, strips=None):
    with SimulatorPool(partial(EpisodeSimulator, PointEnvironment), processes) as pool:
        return run_episodes(runner, pool, starts, parallel, strips)


class ExpertRunner(PolicyRunner):
    """Acts on the goal in the image, so it succeeds only if images and actions belong to the same episode."""

    def __call__(self, inputs):
        chunks = []
        for each in inputs:
            front = each.observation.images["front"]
            goal = np.argwhere(front[..., 1] == 255)[0] / (front.shape[0] - 1) * 2 - 1
            action = np.resize((goal - each.observation.state[:2]) / 0.2, 5)
            chunks.append(np.tile(action / 3, (3, 1)))
        return chunks


def test_every_start_runs_once_and_expert_succeeds(tiny_pi0):
    results = run_points(ExpertRunner(*tiny_pi0))
    assert set(results) == set(STARTS)
    assert all(result.success and result.steps <= 12 for result in results.values())
    assert all((result.task, result.seed) == (start.task, start.seed) for start, result in results.items())


def test_results_are_reproducible_for_any_parallelism_and_number_of_processes(tiny_pi0):
    first = run_points(PolicyRunner(*tiny_pi0))
    assert {result.success for result in first.values()} == {True, False}
    assert run_points(PolicyRunner(*tiny_pi0)) == first
    assert run_points(PolicyRunner(*tiny_pi0), parallel=1) == first
    assert run_points(PolicyRunner(*tiny_pi0), processes=2) == first
    assert run_points(PolicyRunner(*tiny_pi0), starts=STARTS[:3]) == {start: first[start] for start in STARTS[:3]}


def test_noise_is_drawn_by_task_seed_and_step(tiny_pi0):
    environment = PointEnvironment("near")
    environment.reset(0)
    runner, observation = PolicyRunner(*tiny_pi0), environment.observe()
    inputs = [PolicyInput("near", seed, step, "go", observation) for seed, step in ((0, 0), (1, 0), (0, 4))]
    first, other_seed, other_step = runner(inputs)
    alone = runner(inputs[:1])[0]
    np.testing.assert_allclose(first, alone, atol=1e-5)
    assert np.abs(first - other_seed).max() > 1e-2 and np.abs(first - other_step).max() > 1e-2


def test_actions_are_those_of_the_policy_in_robot_units(tiny_pi0):
    policy, processor = tiny_pi0
    environment = PointEnvironment("near")
    environment.reset(0)
    observation, runner = environment.observe(), PolicyRunner(policy, processor, execute=3)
    episode = PolicyInput("near", 0, 0, "go", observation)
    inputs = processor(images=observation.images, task="go", state=observation.state)
    expected = processor.unnormalize_actions(policy.predict_action_chunk(**inputs, noise=runner.noise(episode)[None]))
    np.testing.assert_allclose(runner([episode])[0], expected[0, :3].numpy(), atol=1e-6)


def test_environment_is_observed_once_per_chunk():
    simulator = EpisodeSimulator(PointEnvironment)
    simulator.start(EpisodeStart("near", 3))
    before = simulator.environment.observations
    reply = simulator.step(StepRequest(np.zeros((4, 5))))
    assert reply.steps == 4 and not reply.has_ended
    assert simulator.environment.observations == before + 1
    assert simulator.step(StepRequest(np.zeros((20, 5)))).steps == 12, "the limit of steps ends the episode"
    assert simulator.environment.observations == before + 1, "the end is not observed"
    first_environment = simulator.environment
    simulator.start(EpisodeStart("nearer", 0))
    assert first_environment.is_closed and simulator.environment.task == "nearer"


def test_episode_ends_when_the_task_is_solved():
    simulator = EpisodeSimulator(PointEnvironment)
    simulator.start(EpisodeStart("near", 1))
    for _ in range(12):
        reply = simulator.step(StepRequest(simulator.environment.expert_action()[None]))
        if reply.has_ended:
            break
    assert reply.success and reply.observation is None


@pytest.mark.parametrize(("outcomes", "is_observed"), [((True,), False), ((False,), True), ((True, False), True)])
def test_end_of_an_episode_is_observed_if_its_outcome_is_requested(outcomes, is_observed):
    simulator = EpisodeSimulator(PointEnvironment)
    simulator.start(EpisodeStart("near", 3))
    reply = simulator.step(StepRequest(np.zeros((20, 5)), outcomes))
    assert reply.has_ended and not reply.success and (reply.observation is not None) == is_observed


def test_next_start_has_the_same_task_if_possible():
    waiting = [EpisodeStart("a", 0), EpisodeStart("b", 0), EpisodeStart("b", 1)]
    assert take_start(waiting, "b") == EpisodeStart("b", 0)
    assert take_start(waiting, "c") == EpisodeStart("a", 0)
    assert waiting == [EpisodeStart("b", 1)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": ["front", "top"]}, "by --cameras top=front"),
        ({"state_dim": 7}, "state 7 and action 5; the environment has cameras front, wrist, state 6 and action 5"),
        ({"action_dim": 4}, "rocket-hf adapt"),
    ],
)
def test_policy_for_another_robot_is_rejected(changes, message):
    with pytest.raises(ValueError, match="the policy has cameras") as error:
        run_points(PolicyRunner(*tiny_policy(**changes)))
    assert message in str(error.value)


def test_cameras_are_mapped_by_name():
    policy, processor = tiny_policy(cameras=["eye"])
    assert len(run_points(PolicyRunner(policy, processor, cameras={"eye": "wrist"}))) == len(STARTS)
    with pytest.raises(ValueError, match="no camera 'ey': did you mean 'eye'"):
        PolicyRunner(policy, processor, cameras={"ey": "wrist"})
    with pytest.raises(ValueError, match="--execute must be 1 to 4, the length of this policy's chunks, not 5"):
        PolicyRunner(policy, processor, execute=5)


def test_video_has_one_frame_per_step(tmp_path):
    av = pytest.importorskip("av")
    simulator = EpisodeSimulator(PointEnvironment, tmp_path)
    simulator.start(EpisodeStart("near", 3))
    simulator.step(StepRequest(np.zeros((20, 5))))
    with av.open(str(tmp_path / "near-3-failure.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 12 and frames[0].shape == (28, 56, 3)


def test_reply_describes_the_robot(tiny_pi0):
    robot = EpisodeSimulator(PointEnvironment).start(EpisodeStart("near", 0)).robot
    names = (PointEnvironment.cameras, PointEnvironment.state_names, PointEnvironment.action_names)
    assert robot == RobotInterface("go to the goal", *names, 12)
    PolicyRunner(*tiny_pi0).require_fit(robot)
