"""ROCKET-2 samples compared with lerobot's reader and with the simulator's own annotations."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.rocket2_interface import IGNORE_INDEX
from rocket_hf.sims.vizdoom.actions import FACTORS
from rocket_hf.training.data.batches import sample_generator
from rocket_hf.training.recipe import Rocket2Settings
from rocket_hf.training.rocket2.batches import Rocket2Batches, split_into_chunks
from rocket_hf.training.rocket2.dataset import RecordedRooms
from rocket_hf.training.rocket2.samples import Rocket2Samples
from rocket_hf.training.rocket2.visibility_index import VisibilityIndex

pytestmark = pytest.mark.needs_lerobot

CONFIG = Rocket2Config(action_space="factored", action_factors=FACTORS)
SETTINGS = Rocket2Settings(chunk_steps=4, chunks=3, goals=3)
POSITIONS = range(60)


@pytest.fixture(scope="module")
def data(rooms):
    recorded = RecordedRooms([str(rooms)])
    recorded.load_images()
    return recorded


@pytest.fixture(scope="module")
def frames(rooms):
    dataset = LeRobotDataset("local/rooms", root=rooms)
    return [dataset[index] for index in range(len(dataset))]


@pytest.fixture(scope="module")
def create_samples(data):
    visibility = VisibilityIndex(data)
    return lambda **changes: Rocket2Samples(data, visibility, data.rooms, replace(SETTINGS, **changes), CONFIG, seed=0)


def demonstration_samples(samples):
    """Yield the episode, the rows and the sample at each of many positions."""
    for position in POSITIONS:
        plan = samples.plan(position, is_view=False)
        yield plan.episode, plan.frames, samples.sample(plan)


def test_images_and_columns_equal_those_that_lerobot_reads(data, frames):
    assert len(data) == len(frames)
    for row, frame in enumerate(frames):
        assert torch.equal(data.images[row], (frame["observation.images.view"] * 255).round().byte())
        assert torch.equal(data.objects[row], (frame["observation.images.objects"][0] * 255).round().byte())
        assert torch.equal(data.executed[row], frame["executed"]) and torch.equal(data.actions[row], frame["action"])
    for episode in data.episodes:
        for row in episode.frames:
            assert frames[row]["episode_index"] == episode.episode_index
            assert (frames[row]["room"], frames[row]["target"]) == (episode.room, episode.target)


def test_demonstration_sample_equals_the_recording(create_samples, frames):
    padded = 0
    for episode, rows, sample in demonstration_samples(create_samples()):
        padded += int(sample["is_pad"].sum())
        assert (~sample["is_pad"]).sum() == len(rows) and sample["frame_index"] == rows.start - episode.frames.start
        for step, row in enumerate(rows):
            frame = frames[row]
            assert torch.equal(sample["actions"][step], frame["action"])
            assert sample["visibility"][step] == frame["target.visible"]
            assert torch.allclose(sample["point"][step], frame["target.point"])
            assert torch.allclose(sample["box"][step], frame["target.box"])
            previous = frames[row - 1]["executed"] if row > episode.frames.start else torch.zeros(3, dtype=torch.long)
            assert torch.equal(sample["previous_actions"][step], previous)
    assert padded > 0


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_goals_show_the_target_from_other_episodes_or_from_the_same_one(create_samples, data, share):
    for episode, _, sample in demonstration_samples(create_samples(same_episode_goals=share)):
        assert (sample["goal_interactions"] == 6).all()
        for image, mask in zip(sample["goal_images"], sample["goal_masks"], strict=True):
            same = (data.images == image).flatten(1).all(dim=1) & ((data.objects == episode.target) == mask).flatten(
                1
            ).all(dim=1)
            sources = [other for other in data.episodes if any(same[row] for row in other.frames)]
            assert mask.any() and {other.room for other in sources} == {episode.room}
            assert (episode in sources) == bool(share), (episode, sources)


def test_goal_images_differ_and_are_used_one_after_the_other(create_samples):
    steps_of_goal: Counter[int] = Counter()
    for _, _, sample in demonstration_samples(create_samples()):
        assert len({image.numpy().tobytes() for image in sample["goal_images"]}) > 1
        assert (sample["goal_index"].diff() >= 0).all()
        steps_of_goal.update(sample["goal_index"].tolist())
    assert steps_of_goal[0] > steps_of_goal[1] > steps_of_goal[2] > 0


def test_view_samples_have_goals_of_any_object_and_no_actions(create_samples, data):
    samples = create_samples()
    for position in POSITIONS:
        plan = samples.plan(position, is_view=True)
        sample = samples.sample(plan)
        assert plan.episode.target == 0 and not sample["is_pad"].any()
        assert (sample["actions"] == IGNORE_INDEX).all() and (sample["goal_interactions"] == -1).all()
        object_ids = []
        for image, mask in zip(sample["goal_images"], sample["goal_masks"], strict=True):
            row = next(row for row in plan.episode.frames if torch.equal(data.images[row], image))
            (object_id,) = data.objects[row][mask].unique().tolist()
            assert object_id > 0 and torch.equal(mask, data.objects[row] == object_id)
            object_ids.append(object_id)
        for step, image in enumerate(sample["images"]):
            rows = [row for row in plan.episode.frames if torch.equal(data.images[row], image)]
            is_visible = (data.objects[rows[0]] == object_ids[sample["goal_index"][step]]).any()
            assert sample["visibility"][step] == is_visible


def test_segments_of_an_episode_contain_each_frame_once(create_samples):
    samples = create_samples()
    for episode in samples.demonstrations:
        for seed in range(5):
            count = samples.count_segments(episode)
            segments = [samples.segment(episode, index, sample_generator(seed, 0)) for index in range(count)]
            assert [row for segment in segments for row in segment] == list(episode.frames)
            assert all(0 < len(segment) <= samples.length for segment in segments)


def test_two_ranks_in_two_passes_have_the_batches_of_one_rank_and_no_chunk_of_padding(create_samples):
    samples = create_samples(warmup_steps=1, views_share=0.2, chunks=13)
    counts = set()
    for step in range(6):
        whole = Rocket2Batches(samples, 4, 4, 1, rank=0, world_size=1).chunks_of_step(step)
        counts.add(len(whole))
        parts = [Rocket2Batches(samples, 4, 1, 2, rank, world_size=2).chunks_of_step(step) for rank in (0, 1)]
        for index, chunk in enumerate(whole):
            assert not chunk["is_pad"].all() and bool(chunk["is_continuation"]) == (index > 0)
            for key in ("images", "goal_masks", "previous_hidden", "goal_index", "frame_index"):
                rows = [parts[sample % 2][sample // 2 * len(whole) + index][key] for sample in range(4)]
                assert torch.equal(chunk[key], torch.cat(rows)), key
        assert step > 0 or all((chunk["actions"] == IGNORE_INDEX).all() for chunk in whole)
    assert len(counts) > 1


def test_consecutive_chunks_form_the_samples(create_samples):
    samples = create_samples()
    drawn = [samples.sample(samples.plan(position, is_view=False)) for position in range(3)]
    chunks = list(split_into_chunks(drawn, SETTINGS.chunk_steps, SETTINGS.chunks))
    for index, sample in enumerate(drawn):
        for key in ("images", "actions", "previous_actions", "is_pad", "box"):
            assert torch.equal(torch.cat([chunk[key][index] for chunk in chunks]), sample[key])
        assert all(torch.equal(chunk["goal_masks"][index], sample["goal_masks"]) for chunk in chunks)
