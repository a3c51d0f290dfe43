"""ViZDoom: rooms in the engine, positions of objects in its images, the bot, and recordings."""

import json
import math
import random
import shutil

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from rocket_hf.commands import main
from rocket_hf.errors import UserError
from rocket_hf.sims.vizdoom.actions import FACTORS, IDLE, TURNS, nearest_turn
from rocket_hf.sims.vizdoom.bot import Bot, next_waypoint
from rocket_hf.sims.vizdoom.episodes import DoomSimulator, episode_requests
from rocket_hf.sims.vizdoom.maps import KINDS, OBJECTS_PER_ROOM, Pose, make_room
from rocket_hf.sims.vizdoom.recording import record_rooms
from rocket_hf.sims.vizdoom.world import EVENTS, IMAGE_SIZE, MAX_STEPS, MIN_VISIBLE_PIXELS, REACH_DISTANCE, DoomWorld

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


def read_episodes(folder) -> list[list[dict]]:
    dataset = LeRobotDataset(f"local/{folder.name}", root=folder)
    rows = [dataset[index] for index in range(len(dataset))]
    return [[row for row in rows if row["episode_index"] == number] for number in range(dataset.num_episodes)]


def test_seed_determines_room():
    assert make_room(3) == make_room(3) != make_room(4)
    for seed in range(300):
        room = make_room(seed)
        positions = [item.position for item in room.objects] + list(room.pillars)
        assert len({item.kind for item in room.objects}) == OBJECTS_PER_ROOM
        assert min(math.dist(one, other) for one in positions for other in positions if one != other) > 90
        assert room.is_free(next(room.poses(random.Random(seed))).position)


@pytest.mark.parametrize("seed", [-1, 10**7])
def test_room_seed_outside_seven_digits_raises(seed):
    with pytest.raises(UserError, match="must have at most seven digits"):
        make_room(seed)


def test_engine_has_objects_at_positions_of_room(world):
    names = {
        "golden face": "Soulsphere", "green sphere": "InvulnerabilitySphere", "medikit": "Medikit",
        "blue armour": "BlueArmor", "red column": "ShortRedColumn", "burning barrel": "BurningBarrel",
        "big tree": "BigTree", "tech lamp": "TechLamp",
    }  # fmt: skip
    for seed in ROOMS:
        room = world.rooms[seed]
        world.start_episode(seed, 0, next(room.poses(random.Random(seed))))
        world.game.close()
        world.game.set_objects_info_enabled(True)
        world.game.set_doom_map(room.name)
        world.game.init()
        found = {item.name: (item.position_x, item.position_y) for item in world.game.get_state().objects}
        for item in room.objects:
            assert found[names[item.kind]] == pytest.approx(item.position, abs=1e-3)
        assert len(found) == OBJECTS_PER_ROOM + 1, "the player and the objects"


def test_objects_are_visible_in_their_direction(world):
    """The engine's image is 90 degrees wide: an object `left` degrees to the left is at (1 - tan(left)) / 2."""
    checked = 0
    for seed in ROOMS:
        room, rng = world.rooms[seed], random.Random(seed)
        world.start_episode(seed, 0, next(room.poses(rng)))
        for _ in range(10):
            pose = next(room.poses(rng))
            world.teleport(pose)
            assert world.pose().angle == pytest.approx(pose.angle, abs=0.1)
            assert math.dist(world.pose().position, pose.position) < 2
            view = world.observe()
            assert view.image.shape == (*IMAGE_SIZE, 3) and view.image.std() > 0
            for target in range(OBJECTS_PER_ROOM):
                columns = np.nonzero(view.mask(target))[1]
                left = world.pose().bearing(room.objects[target].position)
                if len(columns) and abs(left) < 35:
                    assert len(columns) >= MIN_VISIBLE_PIXELS and view.is_visible(target)
                    is_complete = columns.min() > 0 and columns.max() < IMAGE_SIZE[1] - 1 and len(set(columns)) > 4
                    tolerance = 0.06 if is_complete else 0.2
                    center = (columns.mean() + 0.5) / IMAGE_SIZE[1]
                    assert center == pytest.approx((1 - math.tan(math.radians(left))) / 2, abs=tolerance)
                    checked += 1
                if abs(left) > 60 and math.dist(pose.position, room.objects[target].position) > 150:
                    assert not view.is_visible(target)
    assert checked > 20


def test_walking_into_object_gives_its_event(world):
    for seed in ROOMS:
        room = world.rooms[seed]
        for target, item in enumerate(room.objects):
            start = (item.position[0] - REACH_DISTANCE - 30, item.position[1])
            others = [other.position for other in room.objects if other != item]
            if not room.is_free(start, 50) or min(math.dist(start, other) for other in others) < REACH_DISTANCE + 60:
                continue
            for goal, event in ((target, "target"), ((target + 1) % OBJECTS_PER_ROOM, "wrong")):
                world.start_episode(seed, goal, Pose(start, 0.0))
                assert world.event() == "none"
                events = [world.step(FORWARD) for _ in range(3)]
                assert events[-1] == event
    world.start_episode(0, 0, Pose((100, 100), 45.0))
    assert world.step(IDLE) in EVENTS and world.pose().angle == pytest.approx(45, abs=0.1)
    for turn in range(1, FACTORS["turn"]):
        before = world.pose().angle
        world.step((0, 0, turn))
        assert (before - world.pose().angle - TURNS[turn] + 180) % 360 - 180 == pytest.approx(0, abs=0.1)


def test_nearest_turn_is_chosen_by_degrees():
    assert [nearest_turn(left) for left in (0.5, 31, -31, 5.1, -11)] == [
        TURNS.index(right) for right in (0, -30, 30, -5, 12)
    ]


def test_next_waypoint_avoids_obstacles_on_path():
    assert next_waypoint((0, 0), (100, 0), []) == (100, 0)
    assert next_waypoint((0, 0), (100, 0), [((50, 60), 40)]) == (100, 0), "obstacle beside the path"
    assert next_waypoint((0, 0), (100, 0), [((150, 0), 40)]) == (100, 0), "obstacle behind the end"
    assert next_waypoint((0, 0), (100, 0), [((50, 10), 40)]) == (50, 10 - 48), "waypoint on the nearer side"


def test_bot_reaches_its_target_and_no_other_object(world):
    events = []
    for seed in ROOMS:
        for target in range(OBJECTS_PER_ROOM):
            room = world.rooms[seed]
            world.start_episode(seed, target, next(room.poses(random.Random(f"{seed} {target}"))))
            bot, event = Bot(room, target), world.event()
            for _ in range(MAX_STEPS):
                if event != "none":
                    break
                event = world.step(bot.act(world.pose(), world.observe().is_visible(target)))
            events.append(event)
    assert events.count("target") >= 0.85 * len(events)


def test_recorded_frames_match_room_target_and_masks(recorded):
    height, width = IMAGE_SIZE
    for number, frames in enumerate(read_episodes(recorded)):
        seed, target = number // (1 + OBJECTS_PER_ROOM), number % (1 + OBJECTS_PER_ROOM)
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
                point = [
                    float(rows.float().mean() + 0.5) / height,
                    float(columns.float().mean() + 0.5) / width,
                ]
                assert frame["target.point"].tolist() == pytest.approx(point, abs=1e-5)
                box = [
                    int(columns.min()) / width,
                    int(rows.min()) / height,
                    int(columns.max() + 1) / width,
                ]
                assert frame["target.box"].tolist()[:3] == pytest.approx(box, abs=1e-5)
        if target:
            kind = make_room(seed).objects[target - 1].kind
            assert frames[0]["task"] == f"go to the {kind}" and kind in KINDS
            assert [int(frame["event"]) for frame in frames] == [0] * (len(frames) - 1) + [1]
        else:
            assert len(frames) == 3 and not any(frame["action"].any() for frame in frames)


def test_some_executed_actions_are_perturbations():
    simulator = DoomSimulator()
    perturbed, steps = 0, 0
    for request in [request for request in episode_requests(2, 20, 1) if request.target is not None]:
        for frame in simulator.handle(request).frames:
            perturbed += (frame["action"] != frame["executed"]).any()
            steps += 1
    simulator.close()
    assert 0.05 < perturbed / steps < 0.4


def assert_same_recording(folder, other) -> None:
    for one, two in zip(read_episodes(folder), read_episodes(other), strict=True):
        for ours, theirs in zip(one, two, strict=True):
            for name in ("observation.images.view", "observation.images.objects", "action", "executed", "target.box"):
                assert (ours[name] == theirs[name]).all(), name


@pytest.mark.slow
def test_recording_does_not_depend_on_number_of_workers(recorded, tmp_path):
    record_rooms(tmp_path / "workers", rooms=2, views=3, workers=2)
    assert_same_recording(tmp_path / "workers", recorded)


def test_interrupted_recording_resumes_to_identical_data(recorded, tmp_path, monkeypatch):
    class InterruptedSimulator(DoomSimulator):
        def handle(self, request):
            if request.room == 1:
                raise KeyboardInterrupt
            return super().handle(request)

    with monkeypatch.context() as patch:
        patch.setattr("rocket_hf.sims.vizdoom.recording.DoomSimulator", InterruptedSimulator)
        with pytest.raises(KeyboardInterrupt):
            record_rooms(tmp_path / "interrupted", rooms=2, views=3, workers=1)
    assert len(read_episodes(tmp_path / "interrupted")) == 1 + OBJECTS_PER_ROOM
    record_rooms(tmp_path / "interrupted", rooms=2, views=3, workers=1)
    assert_same_recording(tmp_path / "interrupted", recorded)


def test_command_prints_table_and_next_command(tmp_path, capsys):
    out = tmp_path / "rooms"
    assert main(["simulate", "vizdoom", "--rooms", "1", "--views", "2", "--workers", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for text in ("look round the room", "\nall                            5 ", "rocket-hf pretrain-encoder"):
        assert text in printed
    assert json.loads((out / "meta" / "simulation.json").read_text())["plan"]["views"] == 2
    shutil.rmtree(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vizdoom"], "vizdoom needs the option --rooms"),
        (["vizdoom", "--rooms", "0"], "rooms must be at least 1, got 0"),
        (["vizdoom", "--rooms", "1", "--tasks", "easy"], "vizdoom does not support --tasks: use --rooms"),
        (["vizdoom", "--rooms", "1", "--depth"], "vizdoom does not support --depth"),
        (["metaworld", "--episodes", "1"], "metaworld needs the option --tasks"),
        (
            ["metaworld", "--tasks", "easy", "--episodes", "1", "--rooms", "2"],
            "metaworld does not support --rooms: use --tasks and --episodes",
        ),
    ],
)
def test_invalid_options_print_message(arguments, message, tmp_path, capsys):
    assert main(["simulate", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_engine_prints_install_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vizdoom", None)
    assert main(["simulate", "vizdoom", "--rooms", "1", "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'rocket-hf[sim]'" in capsys.readouterr().err
