"""ViZDoom's rooms: what the engine makes of them, where things are in its pictures, and what is recorded of the bot."""

import json
import math
import random
import shutil

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from rocket_hf.commands import main
from rocket_hf.sims.vizdoom.actions import FACTORS, REST, TURNS, nearest_turn
from rocket_hf.sims.vizdoom.bot import Bot, way_to
from rocket_hf.sims.vizdoom.episodes import DoomWorker, jobs_of
from rocket_hf.sims.vizdoom.maps import KINDS, OBJECTS, Pose, make_room
from rocket_hf.sims.vizdoom.recording import record_rooms
from rocket_hf.sims.vizdoom.world import EVENTS, MAX_STEPS, REACH, SIZE, SMALLEST, DoomWorld

ROOMS = range(8)
FORWARD = (1, 0, 0)


@pytest.fixture(scope="module")
def world():
    world = DoomWorld([make_room(seed) for seed in ROOMS])
    yield world
    world.close()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rooms") / "two"
    record_rooms(folder, rooms=2, views=3, workers=1)
    return folder


def episodes(folder) -> list[list[dict]]:
    dataset = LeRobotDataset(f"local/{folder.name}", root=folder)
    rows = [dataset[index] for index in range(len(dataset))]
    return [[row for row in rows if row["episode_index"] == number] for number in range(dataset.num_episodes)]


def test_a_seed_is_a_room():
    assert make_room(3) == make_room(3) != make_room(4)
    for seed in range(300):
        room = make_room(seed)
        places = [item.place for item in room.objects] + list(room.pillars)
        assert len({item.kind for item in room.objects}) == OBJECTS
        assert min(math.dist(one, other) for one in places for other in places if one != other) > 90
        assert room.is_free(next(room.poses(random.Random(seed))).place)


@pytest.mark.parametrize("seed", [-1, 10**7])
def test_the_name_of_a_map_has_eight_characters(seed):
    with pytest.raises(ValueError, match="at most seven digits"):
        make_room(seed)


def test_the_engine_has_the_objects_where_the_room_has_them(world):
    names = {
        "golden face": "Soulsphere", "green sphere": "InvulnerabilitySphere", "medikit": "Medikit",
        "blue armour": "BlueArmor", "red column": "ShortRedColumn", "burning barrel": "BurningBarrel",
        "big tree": "BigTree", "tech lamp": "TechLamp",
    }  # fmt: skip
    for seed in ROOMS:
        room = world.rooms[seed]
        world.enter(seed, 0, next(room.poses(random.Random(seed))))
        world.game.close()
        world.game.set_objects_info_enabled(True)
        world.game.set_doom_map(room.name)
        world.game.init()
        found = {item.name: (item.position_x, item.position_y) for item in world.game.get_state().objects}
        for item in room.objects:
            assert found[names[item.kind]] == pytest.approx(item.place, abs=1e-3)
        assert len(found) == OBJECTS + 1, "the player and the objects"


def test_objects_are_seen_in_the_direction_in_which_they_lie(world):
    """The engine's picture is 90 degrees wide: an object `left` degrees to the left is at (1 - tan(left)) / 2."""
    seen = 0
    for seed in ROOMS:
        room, draw = world.rooms[seed], random.Random(seed)
        world.enter(seed, 0, next(room.poses(draw)))
        for _ in range(10):
            pose = next(room.poses(draw))
            world.move_to(pose)
            assert world.pose().angle == pytest.approx(pose.angle, abs=0.1)
            assert math.dist(world.pose().place, pose.place) < 2
            sight = world.look()
            assert sight.image.shape == (*SIZE, 3) and sight.image.std() > 0
            for target in range(OBJECTS):
                columns = np.nonzero(sight.mask(target))[1]
                left = world.pose().bearing(room.objects[target].place)
                if len(columns) and abs(left) < 35:
                    assert len(columns) >= SMALLEST and sight.sees(target)
                    whole = columns.min() > 0 and columns.max() < SIZE[1] - 1 and len(set(columns)) > 4
                    tolerance = 0.06 if whole else 0.2
                    middle = (columns.mean() + 0.5) / SIZE[1]
                    assert middle == pytest.approx((1 - math.tan(math.radians(left))) / 2, abs=tolerance)
                    seen += 1
                if abs(left) > 60 and math.dist(pose.place, room.objects[target].place) > 150:
                    assert not sight.sees(target)
    assert seen > 20


def test_walking_ends_at_what_one_walks_to(world):
    for seed in ROOMS:
        room = world.rooms[seed]
        for target, item in enumerate(room.objects):
            start = (item.place[0] - REACH - 30, item.place[1])
            others = [other.place for other in room.objects if other != item]
            if not room.is_free(start, 50) or min(math.dist(start, other) for other in others) < REACH + 60:
                continue
            for after, event in ((target, "target"), ((target + 1) % OBJECTS, "wrong")):
                world.enter(seed, after, Pose(start, 0.0))
                assert world.event() == "none"
                events = [world.step(FORWARD) for _ in range(3)]
                assert events[-1] == event
    world.enter(0, 0, Pose((100, 100), 45.0))
    assert world.step(REST) in EVENTS and world.pose().angle == pytest.approx(45, abs=0.1)
    for turn in range(1, FACTORS["turn"]):
        before = world.pose().angle
        world.step((0, 0, turn))
        assert (before - world.pose().angle - TURNS[turn] + 180) % 360 - 180 == pytest.approx(0, abs=0.1)


def test_turns_are_chosen_by_their_degrees():
    assert [nearest_turn(left) for left in (0.5, 31, -31, 5.1, -11)] == [
        TURNS.index(right) for right in (0, -30, 30, -5, 12)
    ]


def test_the_way_goes_round_what_is_in_it():
    assert way_to((0, 0), (100, 0), []) == (100, 0)
    assert way_to((0, 0), (100, 0), [((50, 60), 40)]) == (100, 0), "beside the way"
    assert way_to((0, 0), (100, 0), [((150, 0), 40)]) == (100, 0), "behind the end"
    assert way_to((0, 0), (100, 0), [((50, 10), 40)]) == (50, 10 - 48), "on the side that is nearer"


def test_the_bot_comes_to_its_target_and_to_no_other(world):
    events = []
    for seed in ROOMS:
        for target in range(OBJECTS):
            room = world.rooms[seed]
            world.enter(seed, target, next(room.poses(random.Random(f"{seed} {target}"))))
            bot, event = Bot(room, target), world.event()
            for _ in range(MAX_STEPS):
                if event != "none":
                    break
                event = world.step(bot.act(world.pose(), world.look().sees(target)))
            events.append(event)
    assert events.count("target") >= 0.85 * len(events)


def test_what_is_recorded_is_what_was_seen_and_done(recorded):
    for number, frames in enumerate(episodes(recorded)):
        seed, target = number // (1 + OBJECTS), number % (1 + OBJECTS)
        assert {int(frame["room"]) for frame in frames} == {seed}
        assert {int(frame["target"]) for frame in frames} == {target}
        assert {int(frame["interaction"]) for frame in frames} == {6 if target else -1}
        for frame in frames:
            objects = (frame["observation.images.objects"] * 255).round()
            assert (objects[0] == objects[1]).all() and set(objects.unique().tolist()) <= {0, 1, 2, 3, 4}
            mask = objects[0] == target if target else objects[0] > 9
            assert bool(frame["target.visible"]) == bool(mask.any())
            rows, columns = mask.nonzero(as_tuple=True)
            if mask.any():
                point = [float(rows.float().mean() + 0.5) / SIZE[0], float(columns.float().mean() + 0.5) / SIZE[1]]
                assert frame["target.point"].tolist() == pytest.approx(point, abs=1e-5)
                box = [int(columns.min()) / SIZE[1], int(rows.min()) / SIZE[0], int(columns.max() + 1) / SIZE[1]]
                assert frame["target.box"].tolist()[:3] == pytest.approx(box, abs=1e-5)
        if target:
            kind = make_room(seed).objects[target - 1].kind
            assert frames[0]["task"] == f"go to the {kind}" and kind in KINDS
            assert [int(frame["event"]) for frame in frames] == [0] * (len(frames) - 1) + [1]
        else:
            assert len(frames) == 3 and not any(frame["action"].any() for frame in frames)


def test_the_player_is_pushed_off_the_bots_way_now_and_then():
    worker = DoomWorker()
    pushed, steps = 0, 0
    for job in [job for job in jobs_of(2, 20, 1) if job.target is not None]:
        for frame in worker.handle(job).frames:
            pushed += (frame["action"] != frame["executed"]).any()
            steps += 1
    worker.close()
    assert 0.05 < pushed / steps < 0.4


def require_same(folder, other) -> None:
    for one, two in zip(episodes(folder), episodes(other), strict=True):
        for mine, theirs in zip(one, two, strict=True):
            for name in ("observation.images.view", "observation.images.objects", "action", "executed", "target.box"):
                assert (mine[name] == theirs[name]).all(), name


@pytest.mark.slow
def test_workers_change_nothing(recorded, tmp_path):
    record_rooms(tmp_path / "workers", rooms=2, views=3, workers=2)
    require_same(tmp_path / "workers", recorded)


def test_an_interruption_changes_nothing(recorded, tmp_path, monkeypatch):
    class Stopping(DoomWorker):
        def handle(self, job):
            if job.room == 1:
                raise KeyboardInterrupt
            return super().handle(job)

    with monkeypatch.context() as patch:
        patch.setattr("rocket_hf.sims.vizdoom.recording.DoomWorker", Stopping)
        with pytest.raises(KeyboardInterrupt):
            record_rooms(tmp_path / "cut", rooms=2, views=3, workers=1)
    assert len(episodes(tmp_path / "cut")) == 1 + OBJECTS
    record_rooms(tmp_path / "cut", rooms=2, views=3, workers=1)
    require_same(tmp_path / "cut", recorded)


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    out = tmp_path / "rooms"
    assert main(["simulate", "vizdoom", "--rooms", "1", "--views", "2", "--workers", "1", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    for words in ("look round the room", "\nall                            5 ", "rocket-hf pretrain-encoder"):
        assert words in said
    assert json.loads((out / "meta" / "simulation.json").read_text())["plan"]["views"] == 2
    shutil.rmtree(out)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["vizdoom"], "vizdoom needs --rooms"),
        (["vizdoom", "--rooms", "0"], "rooms must be at least 1, got 0"),
        (["vizdoom", "--rooms", "1", "--tasks", "easy"], "--tasks is not for vizdoom: it has --rooms"),
        (["vizdoom", "--rooms", "1", "--depth"], "vizdoom has no --depth"),
        (["metaworld", "--episodes", "1"], "metaworld needs --tasks"),
        (["metaworld", "--tasks", "easy", "--episodes", "1", "--rooms", "2"], "--rooms is not for metaworld"),
    ],
)
def test_wrong_words_get_one_sentence(words, sentence, tmp_path, capsys):
    assert main(["simulate", *words, "--out", str(tmp_path / "out")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_engine_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vizdoom", None)
    assert main(["simulate", "vizdoom", "--rooms", "1", "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'rocket-hf[sim]'" in capsys.readouterr().err
