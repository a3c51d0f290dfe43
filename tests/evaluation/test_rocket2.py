"""Episodes after goals, in ViZDoom's engine: rooms nobody has seen, a goal marked from elsewhere in them."""

import math
from itertools import combinations

import numpy as np
import pytest

from rocket_hf.evaluation.rocket2.environment import (
    AWAY,
    SMALLEST_GOAL,
    Begin,
    Rocket2Environment,
    Start,
    first_goals,
    from_way,
    start_pose,
    starts,
)
from rocket_hf.evaluation.rocket2.players import Chance, PolicyPlayer
from rocket_hf.evaluation.rocket2.rollouts import run_player
from rocket_hf.evaluation.workers import Worlds
from rocket_hf.sims.vizdoom.maps import make_room
from rocket_hf.sims.vizdoom.world import DoomWorld

from .goal_players import BotPlayer, Idle, random_policy

FIRST = 5_000_000
STARTS = starts(12, FIRST)


@pytest.fixture(scope="module")
def run():
    """Episodes of a player, all in the same worlds."""
    with Worlds(Rocket2Environment, workers=0) as worlds:

        def run(player, begins=STARTS, refresh=90, max_steps=60, worlds=worlds, **changes):
            return run_player(player, worlds, begins, refresh=refresh, max_steps=max_steps, **changes)

        yield run


def share(finished, event):
    return sum(episode.event == event for episode in finished.episodes) / len(finished.episodes)


@pytest.fixture(scope="module")
def policy():
    return random_policy()


# Who succeeds


def test_the_bot_succeeds_who_does_nothing_fails_and_chance_lies_between(run):
    assert STARTS[:5] == [Start(FIRST + number, number % 4) for number in range(5)]
    bot = run(BotPlayer(), parallel=4)
    assert [episode.start for episode in bot.episodes] == STARTS
    assert share(bot, "target") >= 0.8
    assert all(episode.steps < 60 for episode in bot.episodes if episode.event == "target")
    chance = run(Chance(), parallel=4)
    assert share(chance, "target") <= 0.4 and share(chance, "wrong") > 0
    idle = run(Idle(), parallel=4, max_steps=20)
    assert share(idle, "none") == 1 and all(episode.steps == 20 for episode in idle.episodes)


def outcomes(finished):
    """All that was done, and what was said to the last digit that rounding leaves alone."""
    return [
        (episode.event, [(glance.said.choices, round(glance.said.visibility, 4)) for glance in episode.glances])
        for episode in finished.episodes
    ]


def test_numbers_reproduce_and_do_not_depend_on_what_runs_beside(run, policy):
    begins, few = STARTS[:6], {"refresh": 3, "max_steps": 12}
    first = run(PolicyPlayer(policy, 4), begins, parallel=4, **few)
    assert outcomes(run(PolicyPlayer(policy, 4), begins, parallel=4, **few)) == outcomes(first)
    assert outcomes(run(PolicyPlayer(policy, 1), begins, parallel=1, **few)) == outcomes(first)
    with Worlds(Rocket2Environment, workers=1) as others:
        assert outcomes(run(PolicyPlayer(policy, 2), begins, worlds=others, parallel=2, **few)) == outcomes(first)
    assert outcomes(run(PolicyPlayer(policy, 2), begins[3:5], parallel=2, **few)) == outcomes(first)[3:5]


def test_what_a_policy_does_hangs_on_its_goal_and_its_temperature(run, policy):
    begins, few = STARTS[:3], {"max_steps": 8, "parallel": 3}
    once = run(PolicyPlayer(policy, 3), begins, **few)
    assert outcomes(run(PolicyPlayer(policy, 3), begins, refresh=1, **few)) != outcomes(once)
    likeliest = outcomes(run(PolicyPlayer(policy, 3, temperature=0), begins, **few))
    assert likeliest == outcomes(run(PolicyPlayer(policy, 3, temperature=0), begins, **few)) != outcomes(once)


def test_heads_that_were_not_kept_say_nothing(run):
    player = PolicyPlayer(random_policy(auxiliary_heads=["point"]), 1)
    (episode,) = run(player, STARTS[:1], max_steps=2).episodes
    assert [glance.said.visibility for glance in episode.glances] == [None, None]
    assert all(len(glance.said.point) == 2 for glance in episode.glances)


# Goals


@pytest.mark.parametrize("start", [STARTS[1], STARTS[6]])
def test_goals_are_masks_of_the_target_from_elsewhere(start):
    world, begin = DoomWorld([make_room(start.seed)]), start_pose(start)
    target = world.rooms[start.seed].objects[start.target].place
    try:
        goals = first_goals(world, start, begin, 5)
        for goal in goals:
            world.move_to(goal.pose)
            sight = world.look()
            there = world.pose()
            assert np.abs(np.subtract(there.place, goal.pose.place)).max() < 1
            assert (sight.mask(start.target) == goal.mask).mean() > 0.99  # flames have moved
            assert goal.mask.sum() >= SMALLEST_GOAL
            assert from_way(goal.pose.place, begin.place, target) >= AWAY
            columns = np.flatnonzero(goal.mask.any(axis=0)) + 0.5
            left = -np.degrees(np.arctan2(columns - 40, 40))  # the field of view has 90 degrees
            breadth = np.degrees(np.arctan2(48, math.dist(there.place, target)))  # a part of it may be hidden
            assert left.min() - breadth < goal.pose.bearing(target) < left.max() + breadth
        assert all(first.pose != second.pose for first, second in combinations(goals, 2))
    finally:
        world.close()


@pytest.mark.parametrize(("refresh", "steps"), [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6]), (90, [0])])
def test_a_goal_is_shown_at_the_start_and_anew_after_so_many_steps(run, refresh, steps):
    player = Idle()
    run(player, STARTS[:1], refresh=refresh, max_steps=7)
    assert [number for number, goal in player.shown] == list(range(7))
    shown = {number: goal.pose for number, goal in player.shown if goal is not None}
    assert list(shown) == steps and len(set(shown.values())) == len(steps)


def test_starts_and_goals_are_the_same_for_every_refresh_and_any_history():
    fresh, used = Rocket2Environment(), Rocket2Environment()
    try:
        used.follow(Begin(STARTS[2], 30, 60))
        first, again = fresh.follow(Begin(STARTS[1], 1, 4)), used.follow(Begin(STARTS[1], 30, 60))
        assert (first.image == again.image).all() and first.pose == again.pose
        assert (first.goal.image == again.goal.image).all() and (first.goal.mask == again.goal.mask).all()
        assert (first.steps, first.ended, first.event) == (0, False, "none")
    finally:
        fresh.close()
        used.close()


def test_truth_is_the_middle_of_the_mask(run):
    shots = []
    (episode,) = run(BotPlayer(), STARTS[1:2], on_film=lambda _, film: shots.extend(film)).episodes
    assert len(episode.glances) == episode.steps == len(shots) - 1
    for glance, shot in zip(episode.glances, shots, strict=False):
        assert glance.visible == shot.moment.mask.any()
        if glance.visible:
            middle = (np.argwhere(shot.moment.mask).mean(axis=0) + 0.5) / shot.moment.mask.shape
            np.testing.assert_allclose(glance.point, middle, atol=1e-6)


def test_how_far_a_place_is_from_the_way():
    begin, end = (0.0, 0.0), (100.0, 0.0)
    assert from_way((50.0, 30.0), begin, end) == 30
    assert from_way((-30.0, 40.0), begin, end) == 50
    assert from_way((130.0, -40.0), begin, end) == 50


def test_a_room_whose_object_is_nowhere_to_be_seen_is_named(monkeypatch):
    monkeypatch.setattr("rocket_hf.evaluation.rocket2.environment.ATTEMPTS", 3)
    world = Rocket2Environment()
    try:
        with pytest.raises(ValueError, match=f"in room {FIRST} only . of 3 views show object 0"):
            world.follow(Begin(STARTS[0], 1, 60))
    finally:
        world.close()
