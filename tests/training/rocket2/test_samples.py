"""ROCKET-2's samples against what lerobot reads of the recording, and against what the simulator said."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.rocket2_interface import NOBODY_SAYS
from rocket_hf.sims.vizdoom.actions import FACTORS
from rocket_hf.training.data.batches import sample_generator
from rocket_hf.training.recipe import GoalRecipe
from rocket_hf.training.rocket2.batches import Rocket2Batches, cut
from rocket_hf.training.rocket2.dataset import RecordedRooms
from rocket_hf.training.rocket2.samples import Rocket2Samples
from rocket_hf.training.rocket2.visibility_index import VisibilityIndex

pytestmark = pytest.mark.needs_lerobot

CONFIG = Rocket2Config(action_space="factored", action_factors=FACTORS)
ROCKET2 = GoalRecipe(chunk_steps=4, chunks=3, goals=3)
POSITIONS = range(60)


@pytest.fixture(scope="module")
def data(rooms):
    recorded = RecordedRooms([str(rooms)])
    recorded.read()
    return recorded


@pytest.fixture(scope="module")
def frames(rooms):
    dataset = LeRobotDataset("local/rooms", root=rooms)
    return [dataset[number] for number in range(len(dataset))]


@pytest.fixture(scope="module")
def samples_of(data):
    sights = VisibilityIndex(data)
    return lambda **changes: Rocket2Samples(data, sights, data.rooms, replace(ROCKET2, **changes), CONFIG, seed=0)


def walks(samples):
    """(episode, its first frame, sample) of many positions."""
    for position in POSITIONS:
        plan = samples.plan(position, of_views=False)
        yield plan.episode, plan.frames, samples.sample(plan)


def test_pictures_and_numbers_are_those_that_lerobot_reads(data, frames):
    assert len(data) == len(frames)
    for row, frame in enumerate(frames):
        assert torch.equal(data.images[row], (frame["observation.images.view"] * 255).round().byte())
        assert torch.equal(data.objects[row], (frame["observation.images.objects"][0] * 255).round().byte())
        assert torch.equal(data.executed[row], frame["executed"]) and torch.equal(data.actions[row], frame["action"])
    for episode in data.episodes:
        for row in episode.frames:
            assert frames[row]["episode_index"] == episode.number
            assert (frames[row]["room"], frames[row]["target"]) == (episode.room, episode.target)


def test_a_walk_is_what_was_recorded(samples_of, frames):
    padded = 0
    for episode, rows, sample in walks(samples_of()):
        padded += int(sample["is_pad"].sum())
        assert (~sample["is_pad"]).sum() == len(rows) and sample["frame_index"] == rows.start - episode.frames.start
        for step, row in enumerate(rows):
            frame = frames[row]
            assert torch.equal(sample["actions"][step], frame["action"])
            assert sample["visibility"][step] == frame["target.visible"]
            assert torch.allclose(sample["point"][step], frame["target.point"])
            assert torch.allclose(sample["box"][step], frame["target.box"])
            before = frames[row - 1]["executed"] if row > episode.frames.start else torch.zeros(3, dtype=torch.long)
            assert torch.equal(sample["previous_actions"][step], before)
    assert padded > 0


@pytest.mark.parametrize("own", [0.0, 1.0])
def test_goals_show_the_target_in_the_room_from_elsewhere_or_in_the_episode_itself(samples_of, data, own):
    for episode, _, sample in walks(samples_of(own_goals=own)):
        assert (sample["goal_interactions"] == 6).all()
        for image, mask in zip(sample["goal_images"], sample["goal_masks"], strict=True):
            same = (data.images == image).flatten(1).all(dim=1) & ((data.objects == episode.target) == mask).flatten(
                1
            ).all(dim=1)
            found = [other for other in data.episodes if any(same[row] for row in other.frames)]
            assert mask.any() and {other.room for other in found} == {episode.room}
            assert (episode in found) == bool(own), (episode, found)


def test_goals_are_different_pictures_and_each_may_be_asked_for(samples_of):
    asked: Counter[int] = Counter()
    for _, _, sample in walks(samples_of()):
        assert len({image.numpy().tobytes() for image in sample["goal_images"]}) > 1
        assert (sample["goal_index"].diff() >= 0).all()  # one after the other, none again
        asked.update(sample["goal_index"].tolist())
    assert asked[0] > asked[1] > asked[2] > 0


def test_views_ask_after_any_object_and_nobody_says_what_to_do(samples_of, data):
    samples = samples_of()
    for position in POSITIONS:
        plan = samples.plan(position, of_views=True)
        sample = samples.sample(plan)
        assert plan.episode.target == 0 and not sample["is_pad"].any()
        assert (sample["actions"] == NOBODY_SAYS).all() and (sample["goal_interactions"] == -1).all()
        numbers = []
        for image, mask in zip(sample["goal_images"], sample["goal_masks"], strict=True):
            row = next(row for row in plan.episode.frames if torch.equal(data.images[row], image))
            (number,) = data.objects[row][mask].unique().tolist()
            assert number > 0 and torch.equal(mask, data.objects[row] == number)
            numbers.append(number)
        for step, image in enumerate(sample["images"]):
            rows = [row for row in plan.episode.frames if torch.equal(data.images[row], image)]
            there = (data.objects[rows[0]] == numbers[sample["goal_index"][step]]).any()
            assert sample["visibility"][step] == there


def test_the_parts_of_an_episode_are_all_its_frames_once_wherever_it_is_cut(samples_of):
    samples = samples_of()
    for episode in samples.walks:
        for seed in range(5):
            draw = [sample_generator(seed, 0) for _ in range(samples.parts(episode))]
            parts = [samples.segment(episode, part, draw[part]) for part in range(samples.parts(episode))]
            assert [row for part in parts for row in part] == list(episode.frames)
            assert all(0 < len(part) <= samples.length for part in parts)


def test_a_step_of_two_ranks_in_passes_has_the_samples_of_one(samples_of):
    """And no chunk in which every sample has ended."""
    samples = samples_of(warmup_steps=1, views_share=0.2, chunks=13)
    counts = set()
    for step in range(6):
        whole = Rocket2Batches(samples, 4, 4, 1, rank=0, ranks=1).of_step(step)
        counts.add(len(whole))
        parts = [Rocket2Batches(samples, 4, 1, 2, rank, ranks=2).of_step(step) for rank in (0, 1)]
        for number, chunk in enumerate(whole):
            assert not chunk["is_pad"].all() and bool(chunk["goes_on"]) == (number > 0)
            for key in ("images", "goal_masks", "previous_hidden", "goal_index", "frame_index"):
                rows = [parts[sample % 2][sample // 2 * len(whole) + number][key] for sample in range(4)]
                assert torch.equal(chunk[key], torch.cat(rows)), key
        assert step > 0 or all((chunk["actions"] == NOBODY_SAYS).all() for chunk in whole)
    assert len(counts) > 1


def test_chunks_one_after_the_other_are_the_samples(samples_of):
    samples = samples_of()
    own = [samples.sample(samples.plan(position, False)) for position in range(3)]
    chunks = list(cut(own, ROCKET2.chunk_steps, ROCKET2.chunks))
    for number, sample in enumerate(own):
        for key in ("images", "actions", "previous_actions", "is_pad", "box"):
            assert torch.equal(torch.cat([chunk[key][number] for chunk in chunks]), sample[key])
        assert all(torch.equal(chunk["goal_masks"][number], sample["goal_masks"]) for chunk in chunks)
