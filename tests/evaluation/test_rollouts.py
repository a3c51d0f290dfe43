"""Episodes of a policy, in a world of points."""

from functools import partial

import numpy as np
import pytest

from rocket_hf.evaluation.actor import Actor, View
from rocket_hf.evaluation.environments import Robot, Start, World
from rocket_hf.evaluation.rollouts import run_episodes, take
from rocket_hf.evaluation.workers import Worlds

from .conftest import tiny_policy
from .point_world import PointWorld

STARTS = [Start(task, seed) for seed in range(8) for task in ("near", "nearer")]


def episodes(actor, parallel=4, starts=STARTS):
    with Worlds(partial(World, PointWorld), workers=0) as worlds:
        return run_episodes(actor, worlds, starts, parallel)


class Expert(Actor):
    """Acts on the goal that it finds in the picture, to tell whether pictures and actions go where they belong."""

    def __call__(self, views):
        chunks = []
        for view in views:
            front = view.observation.images["front"]
            goal = np.argwhere(front[..., 1] == 255)[0] / (front.shape[0] - 1) * 2 - 1
            action = np.resize((goal - view.observation.state[:2]) / 0.2, 5)
            chunks.append(np.tile(action / 3, (3, 1)))
        return chunks


def test_every_start_is_run_once_and_a_good_policy_succeeds(tiny_pi0):
    finished = episodes(Expert(*tiny_pi0))
    assert set(finished) == set(STARTS)
    assert all(episode.success and episode.steps <= 12 for episode in finished.values())
    assert all((episode.task, episode.seed) == (start.task, start.seed) for start, episode in finished.items())


def test_numbers_reproduce_and_do_not_depend_on_what_runs_beside(tiny_pi0):
    first = episodes(Actor(*tiny_pi0))
    assert {episode.success for episode in first.values()} == {True, False}
    assert episodes(Actor(*tiny_pi0)) == first
    assert episodes(Actor(*tiny_pi0), parallel=1) == first
    assert episodes(Actor(*tiny_pi0), starts=STARTS[:3]) == {start: first[start] for start in STARTS[:3]}


def test_noise_is_drawn_by_task_seed_and_step(tiny_pi0):
    environment = PointWorld("near")
    environment.reset(0)
    actor, seen = Actor(*tiny_pi0), environment.observe()
    views = [View("near", 0, 0, "go", seen), View("near", 1, 0, "go", seen), View("near", 0, 4, "go", seen)]
    one, other, later = actor(views)
    alone = actor(views[:1])[0]
    np.testing.assert_allclose(one, alone, atol=1e-5)
    assert np.abs(one - other).max() > 1e-2 and np.abs(one - later).max() > 1e-2


def test_actions_are_those_of_the_policy_in_robot_units(tiny_pi0):
    policy, processor = tiny_pi0
    environment = PointWorld("near")
    environment.reset(0)
    seen, actor = environment.observe(), Actor(policy, processor, execute=3)
    view = View("near", 0, 0, "go", seen)
    inputs = processor(images=seen.images, task="go", state=seen.state)
    wanted = processor.unnormalize_actions(policy.predict_action_chunk(**inputs, noise=actor.noise(view)[None]))
    np.testing.assert_allclose(actor([view])[0], wanted[0, :3].numpy(), atol=1e-6)


def test_a_policy_looks_once_a_chunk():
    world = World(PointWorld)
    world.start(Start("near", 3))
    before = world.environment.looks
    moment = world.act(np.zeros((4, 5)))
    assert moment.steps == 4 and not moment.ended
    assert world.environment.looks == before + 1
    assert world.act(np.zeros((20, 5))).steps == 12, "the limit of steps ends it"
    kept = world.environment
    world.start(Start("nearer", 0))
    assert kept.closed and world.environment.task == "nearer"


def test_an_episode_ends_where_the_task_is_solved():
    world = World(PointWorld)
    world.start(Start("near", 1))
    for _ in range(12):
        moment = world.act(world.environment.expert_action()[None])
        if moment.ended:
            break
    assert moment.success and moment.observation is None


def test_worlds_keep_their_task():
    waiting = [Start("a", 0), Start("b", 0), Start("b", 1)]
    assert take(waiting, "b") == Start("b", 0)
    assert take(waiting, "c") == Start("a", 0)
    assert waiting == [Start("b", 1)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cameras": ["front", "top"]}, "by --cameras top=front"),
        ({"state_dim": 7}, "state 7 and action 5; the environment has cameras front, wrist, state 6 and action 5"),
        ({"action_dim": 4}, "rocket-hf adapt"),
    ],
)
def test_a_policy_of_another_robot_is_refused(changes, said):
    with pytest.raises(ValueError, match="the policy has cameras") as error:
        episodes(Actor(*tiny_policy(**changes)))
    assert said in str(error.value)


def test_cameras_are_mapped_by_name():
    policy, processor = tiny_policy(cameras=["eye"])
    assert len(episodes(Actor(policy, processor, cameras={"eye": "wrist"}))) == len(STARTS)
    with pytest.raises(ValueError, match="no camera 'ey': did you mean 'eye'"):
        Actor(policy, processor, cameras={"ey": "wrist"})
    with pytest.raises(ValueError, match="1 to 4 can be executed, not 5"):
        Actor(policy, processor, execute=5)


def test_a_video_has_a_frame_a_step(tmp_path):
    av = pytest.importorskip("av")
    world = World(PointWorld, tmp_path)
    world.start(Start("near", 3))
    world.act(np.zeros((20, 5)))
    with av.open(str(tmp_path / "near-3-failure.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 12 and frames[0].shape == (28, 56, 3)


def test_a_moment_tells_the_robot(tiny_pi0):
    robot = World(PointWorld).start(Start("near", 0)).robot
    assert robot == Robot("go to the goal", PointWorld.cameras, PointWorld.state_names, PointWorld.action_names, 12)
    Actor(*tiny_pi0).require_fit(robot)
