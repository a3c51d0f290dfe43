"""ROCKET-2 episodes in ViZDoom: starts, goal views, and rollouts of players."""

import math
from itertools import combinations

import numpy as np
import pytest

from rocket_hf.evaluation.rocket2.players import PolicyPlayer, RandomPlayer
from rocket_hf.evaluation.rocket2.rollouts import run_player
from rocket_hf.evaluation.rocket2.simulator import (
    MIN_GOAL_DISTANCE,
    MIN_GOAL_PIXELS,
    Rocket2Simulator,
    Rocket2Start,
    Rocket2StartRequest,
    distance_to_path,
    episode_starts,
    find_goal_views,
    start_pose,
)
from rocket_hf.sims.process_pool import SimulatorPool
from rocket_hf.sims.vizdoom.maps import make_room
from rocket_hf.sims.vizdoom.world import DoomWorld

from .rocket2_players import BotPlayer, IdlePlayer, random_policy

FIRST = 5_000_000
STARTS = episode_starts(12, FIRST)


@pytest.fixture(scope="module")
def run():
    """Return a function that runs a player; all rollouts share one pool."""
    with SimulatorPool(Rocket2Simulator, processes=0) as pool:

        def run(player, starts=STARTS, refresh=90, max_steps=60, pool=pool, **changes):
            return run_player(player, pool, starts, refresh=refresh, max_steps=max_steps, **changes)

        yield run


def share(rollouts, event):
    return sum(episode.event == event for episode in rollouts.episodes) / len(rollouts.episodes)


@pytest.fixture(scope="module")
def policy():
    return random_policy()


# Success rates of players


def test_bot_succeeds_idle_player_fails_and_random_player_is_between(run):
    assert STARTS[:5] == [Rocket2Start(FIRST + number, number % 4) for number in range(5)]
    bot = run(BotPlayer(), parallel=4)
    assert [episode.start for episode in bot.episodes] == STARTS
    assert share(bot, "target") >= 0.8
    assert all(episode.steps < 60 for episode in bot.episodes if episode.event == "target")
    random = run(RandomPlayer(), parallel=4)
    assert share(random, "target") <= 0.4 and share(random, "wrong") > 0
    idle = run(IdlePlayer(), parallel=4, max_steps=20)
    assert share(idle, "none") == 1 and all(episode.steps == 20 for episode in idle.episodes)


def outcomes(rollouts):
    """Return all choices, and predictions up to the digits that rounding changes."""
    return [
        (episode.event, [(record.output.choices, round(record.output.visibility, 4)) for record in episode.visibility])
        for episode in rollouts.episodes
    ]


def test_results_are_reproducible_for_any_parallelism_and_number_of_processes(run, policy):
    starts, few = STARTS[:6], {"refresh": 3, "max_steps": 12}
    first = run(PolicyPlayer(policy, 4), starts, parallel=4, **few)
    assert outcomes(run(PolicyPlayer(policy, 4), starts, parallel=4, **few)) == outcomes(first)
    assert outcomes(run(PolicyPlayer(policy, 1), starts, parallel=1, **few)) == outcomes(first)
    with SimulatorPool(Rocket2Simulator, processes=1) as other_pool:
        assert outcomes(run(PolicyPlayer(policy, 2), starts, pool=other_pool, parallel=2, **few)) == outcomes(first)
    assert outcomes(run(PolicyPlayer(policy, 2), starts[3:5], parallel=2, **few)) == outcomes(first)[3:5]


def test_choices_of_a_policy_depend_on_its_goal_and_temperature(run, policy):
    starts, few = STARTS[:3], {"max_steps": 8, "parallel": 3}
    once = run(PolicyPlayer(policy, 3), starts, **few)
    assert outcomes(run(PolicyPlayer(policy, 3), starts, refresh=1, **few)) != outcomes(once)
    most_probable = outcomes(run(PolicyPlayer(policy, 3, temperature=0), starts, **few))
    assert most_probable == outcomes(run(PolicyPlayer(policy, 3, temperature=0), starts, **few)) != outcomes(once)


def test_policy_without_visibility_head_predicts_no_visibility(run):
    player = PolicyPlayer(random_policy(auxiliary_heads=["point"]), 1)
    (episode,) = run(player, STARTS[:1], max_steps=2).episodes
    assert [record.output.visibility for record in episode.visibility] == [None, None]
    assert all(len(record.output.point) == 2 for record in episode.visibility)


# Goals


@pytest.mark.parametrize("start", [STARTS[1], STARTS[6]])
def test_goal_views_show_the_target_away_from_the_path_to_it(start):
    world, begin = DoomWorld([make_room(start.seed)]), start_pose(start)
    target = world.rooms[start.seed].objects[start.target].position
    try:
        goals = find_goal_views(world, start, begin, 5)
        for goal in goals:
            world.teleport(goal.pose)
            sight = world.observe()
            pose = world.pose()
            assert np.abs(np.subtract(pose.position, goal.pose.position)).max() < 1
            assert (sight.mask(start.target) == goal.mask).mean() > 0.99  # flames have moved
            assert goal.mask.sum() >= MIN_GOAL_PIXELS
            assert distance_to_path(goal.pose.position, begin.position, target) >= MIN_GOAL_DISTANCE
            columns = np.flatnonzero(goal.mask.any(axis=0)) + 0.5
            left = -np.degrees(np.arctan2(columns - 40, 40))  # the field of view has 90 degrees
            half_width = np.degrees(np.arctan2(48, math.dist(pose.position, target)))  # a part of it may be hidden
            assert left.min() - half_width < goal.pose.bearing(target) < left.max() + half_width
        assert all(first.pose != second.pose for first, second in combinations(goals, 2))
    finally:
        world.close()


@pytest.mark.parametrize(("refresh", "steps"), [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6]), (90, [0])])
def test_goal_is_shown_at_the_start_and_after_every_refresh_interval(run, refresh, steps):
    player = IdlePlayer()
    run(player, STARTS[:1], refresh=refresh, max_steps=7)
    assert [number for number, goal in player.goals] == list(range(7))
    shown = {number: goal.pose for number, goal in player.goals if goal is not None}
    assert list(shown) == steps and len(set(shown.values())) == len(steps)


def test_starts_and_goals_do_not_depend_on_refresh_or_earlier_episodes():
    fresh, used = Rocket2Simulator(), Rocket2Simulator()
    try:
        used.handle(Rocket2StartRequest(STARTS[2], 30, 60))
        first, again = (
            fresh.handle(Rocket2StartRequest(STARTS[1], 1, 4)),
            used.handle(Rocket2StartRequest(STARTS[1], 30, 60)),
        )
        assert (first.image == again.image).all() and first.pose == again.pose
        assert (first.goal.image == again.goal.image).all() and (first.goal.mask == again.goal.mask).all()
        assert (first.steps, first.has_ended, first.event) == (0, False, "none")
    finally:
        fresh.close()
        used.close()


def test_true_point_is_the_center_of_the_mask(run):
    frames = []
    (episode,) = run(BotPlayer(), STARTS[1:2], on_episode_end=lambda _, each: frames.extend(each)).episodes
    assert len(episode.visibility) == episode.steps == len(frames) - 1
    for record, frame in zip(episode.visibility, frames, strict=False):
        assert record.is_visible == frame.reply.mask.any()
        if record.is_visible:
            center = (np.argwhere(frame.reply.mask).mean(axis=0) + 0.5) / frame.reply.mask.shape
            np.testing.assert_allclose(record.point, center, atol=1e-6)


def test_distance_to_path_is_that_to_the_segment():
    begin, end = (0.0, 0.0), (100.0, 0.0)
    assert distance_to_path((50.0, 30.0), begin, end) == 30
    assert distance_to_path((-30.0, 40.0), begin, end) == 50
    assert distance_to_path((130.0, -40.0), begin, end) == 50


def test_room_without_goal_views_is_named(monkeypatch):
    monkeypatch.setattr("rocket_hf.evaluation.rocket2.simulator.ATTEMPTS", 3)
    simulator = Rocket2Simulator()
    try:
        with pytest.raises(ValueError, match=f"in room {FIRST} only . of 3 views show object 0"):
            simulator.handle(Rocket2StartRequest(STARTS[0], 1, 60))
    finally:
        simulator.close()
