"""Controls of alignment targets: features of other frames, positions alone, and the mean of an image subtracted."""

import shutil

import numpy as np
import pytest
import torch

from rocket_hf.errors import UserError
from rocket_hf.teachers.registration import CODE_WEIGHT, Registration, position_code, subtract_image_mean
from rocket_hf.teachers.teacher import Features
from rocket_hf.training.data.lerobot_data import RobotDataset
from rocket_hf.training.data.loader import make_loader
from rocket_hf.training.recipe import DatasetConfig
from rocket_hf.training.recipe_checks import check_recipe
from rocket_hf.training.recipe_files import read_vla_recipe
from rocket_hf.training.vla.model_inputs import ModelInputs
from rocket_hf.training.vla.resources import TrainingResources, load_training_resources
from rocket_hf.training.vla.shuffled_features import shuffle_between_episodes, shuffle_dataset
from rocket_hf.training.vla.targets import LiveTargets, PositionTargets

from ..conftest import (
    checkpoint_tensors,
    exported_weights,
    largest_difference,
    run_ranks,
    run_training,
    set_options,
    step_records,
)

CPU = torch.device("cpu")
SHUFFLED = {"teacher__targets": "shuffled"}
POSITION = {"teacher__targets": "position"}


# The permutation


@pytest.mark.parametrize("lengths", [(3, 3), (2, 3, 4, 5), (1, 1, 1), (7, 9, 2, 8), (40, 31, 25)])
def test_frames_are_permuted_between_episodes(lengths):
    episodes = np.repeat(np.arange(len(lengths)) + 5, lengths)
    found = shuffle_between_episodes(episodes, np.random.default_rng(3))
    assert sorted(found) == list(range(len(episodes)))  # bijective: no episode has more than half of the frames
    assert (episodes[found] != episodes).all()
    assert np.array_equal(found, shuffle_between_episodes(episodes, np.random.default_rng(3)))


def test_longest_episode_repeats_the_frames_of_shorter_ones():
    """Six of eight frames have only two frames of other episodes to read: each is read three times."""
    episodes = np.array([0, 0, 0, 0, 0, 0, 1, 2])
    found = shuffle_between_episodes(episodes, np.random.default_rng(0))
    assert (episodes[found] != episodes).all()
    assert sorted(found[:6]) == [6, 6, 6, 7, 7, 7]


def test_two_episodes_of_one_frame_each_are_swapped():
    assert shuffle_between_episodes(np.array([4, 9]), np.random.default_rng(1)).tolist() == [1, 0]


def test_time_in_the_episode_is_not_preserved():
    """Frames of a longer episode are read in random order, or targets would still depend on how far an episode is."""
    episodes = np.repeat(np.arange(20), 50)
    times = np.tile(np.arange(50), 20)
    found = shuffle_between_episodes(episodes, np.random.default_rng(0))
    assert abs(np.corrcoef(times, times[found])[0, 1]) < 0.1


@pytest.mark.needs_lerobot
def test_frames_of_a_dataset_get_other_frames_of_their_task(image_dataset, config):
    """The dataset alternates two tasks: episodes 0 and 2 have 12 frames each, 1 and 3 have 15."""
    data = RobotDataset(DatasetConfig(id=str(image_dataset)), config)
    others = shuffle_dataset(data, np.random.default_rng([42, 0]))
    episodes = np.repeat(np.arange(4), [12, 15, 12, 15])
    assert episodes[others].tolist() == np.repeat([2, 3, 0, 1], [12, 15, 12, 15]).tolist()
    assert sorted(others) == list(range(54))
    assert others.tolist() != shuffle_dataset(data, np.random.default_rng([43, 0])).tolist()
    three = RobotDataset(DatasetConfig(id=str(image_dataset), episodes=[0, 1, 2]), config)
    with pytest.raises(UserError, match=r"at least two episodes of each task, .* has one of 'push the blue square'"):
        shuffle_dataset(three, np.random.default_rng(0))


# Runs with controls


@pytest.fixture(scope="module")
def load(image_dataset, teacher, policies, caches):
    def load_(cached: bool, **changes) -> tuple:
        required = {
            "policy": str(policies("smolvla")),
            "data__datasets__0__id": str(image_dataset),
            "teacher__name": str(teacher),
            "teacher__caches": [str(caches("bf16"))] if cached else [],
        }
        recipe = read_vla_recipe("tiny", set_options(**required, data__validation=0, **changes)[1::2])
        check_recipe(recipe)
        return recipe, load_training_resources(recipe, CPU)

    return load_


def read_targets(recipe, resources: TrainingResources, rank: int = 0, ranks: int = 1) -> list[tuple[list[int], dict]]:
    """Return the frames and the targets of the first two steps of eight samples."""
    loader = make_loader(
        resources.datasets, resources.order, resources.processor, resources.config, recipe.data, recipe.run.seed,
        8 // ranks, rank, ranks, 0, 16, resources.feature_readers,
    )  # fmt: skip
    inputs = ModelInputs(resources.config, resources.processor, resources.targets, CPU)
    batches = []
    for raw in loader:
        _, images, warp = inputs.inputs(raw)
        batches.append((raw["index"].tolist(), inputs.targets(raw, images, warp)))
    return batches


@pytest.mark.needs_lerobot
def test_shuffled_targets_are_the_cached_features_of_the_other_frame(load):
    (recipe, own), (shuffled_recipe, shuffled) = load(True), load(True, **SHUFFLED)
    others = shuffle_dataset(shuffled.datasets[0], np.random.default_rng([recipe.run.seed, 0]))
    frames, targets = read_targets(shuffled_recipe, shuffled)[0]
    rows = torch.utils.data.default_collate([own.caches[0].read(int(others[index])) for index in frames])
    expected = own.targets({"features": rows}, [torch.zeros(1)], None)
    for layer, target in targets.items():
        assert torch.equal(target, expected[layer])
        assert not torch.equal(target, read_targets(recipe, own)[0][1][layer])


@pytest.mark.needs_lerobot
@pytest.mark.parametrize("changes", [SHUFFLED, POSITION], ids=["shuffled", "position"])
def test_two_ranks_read_the_targets_of_one(load, changes):
    recipe, resources = load(True, data__augmentation__crop_area=0.7, **changes)
    alone = read_targets(recipe, resources)
    halves = [read_targets(recipe, resources, rank, 2) for rank in range(2)]
    for step, (frames, targets) in enumerate(alone):
        assert frames == halves[0][step][0] + halves[1][step][0]
        for layer, target in targets.items():
            assert torch.equal(target, torch.cat([half[step][1][layer] for half in halves]))


@pytest.mark.needs_lerobot
def test_position_targets_are_the_code_that_registration_adds(load, teacher):
    """They are equal for all frames, with and without a cache, and follow the student's image instead of crops."""
    recipe, resources = load(False, **POSITION)
    assert isinstance(resources.targets, PositionTargets) and resources.caches is None
    _, targets = read_targets(recipe, resources)[0]
    live = load(False)[1].targets
    assert isinstance(live, LiveTargets) and targets.keys() == {2, 3, 4}
    grid = resources.targets.grid
    assert resources.targets.width == live.width and grid == live.teacher.grid(48, 64)
    code = position_code(grid, live.width)
    expected = live.registration(Features({2: CODE_WEIGHT * code.expand(1, 2, -1, -1)}, grid))[2] / 2
    torch.testing.assert_close(targets[2], expected.expand(8, -1, -1, -1), atol=1e-5, rtol=0)
    _, cached = read_targets(*load(True, **POSITION))[0]
    assert all(torch.equal(cached[layer], target) for layer, target in targets.items())


@pytest.mark.needs_lerobot
def test_shuffled_targets_need_feature_caches(load):
    with pytest.raises(UserError, match=r"teacher.targets=shuffled reads the features of other frames from feature"):
        load(False, **SHUFFLED)
    with pytest.raises(UserError, match=r"teacher.targets: invalid value 'shufled'; did you mean 'shuffled'?"):
        load(True, teacher__targets="shufled")


def control_run(tiny_run, caches, changes, out, *more, **settings):
    cache = ["--cache", caches("bf16")] if changes == SHUFFLED else []
    common = {"run__save_every": 1, "run__keep": 9, "run__log_every": 1, "run__validate_every": 2}
    tiny_run(out, *cache, *more, **common, **changes, **settings)


@pytest.mark.needs_lerobot
@pytest.mark.parametrize("changes", [SHUFFLED, POSITION], ids=["shuffled", "position"])
def test_resumed_run_with_controls_equals_uninterrupted_run(tiny_run, caches, tmp_path, changes):
    control_run(tiny_run, caches, changes, tmp_path / "four", run__steps=4)
    control_run(tiny_run, caches, changes, tmp_path / "two", run__steps=2)
    shutil.rmtree(tmp_path / "two" / "policy")
    control_run(tiny_run, caches, changes, tmp_path / "two", "--resume", run__steps=4)
    one, other = (checkpoint_tensors(tmp_path / name, 4) for name in ("four", "two"))
    assert largest_difference(one, other) == 0
    assert largest_difference(exported_weights(tmp_path / "four"), exported_weights(tmp_path / "two")) == 0
    losses = [[line["alignment/1-2"] for line in step_records(tmp_path / name)] for name in ("four", "two")]
    assert losses[0] == losses[1] and len(losses[0]) == 4


@pytest.mark.slow
@pytest.mark.needs_lerobot
def test_two_processes_train_the_policy_of_one_with_shuffled_targets(
    tiny_run, caches, tmp_path, image_dataset, teacher, policies
):
    control_run(tiny_run, caches, SHUFFLED, tmp_path / "one", run__steps=4)
    arguments = ["--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", image_dataset, "--teacher", teacher]
    changes = set_options(run__steps=4, run__save_every=1, run__keep=9, run__log_every=1, run__validate_every=2)
    words = [*arguments, "--cache", caches("bf16"), *changes, *set_options(**SHUFFLED)]
    assert run_ranks(2, tmp_path / "two", *words) == [0, 0], (tmp_path / "ranks.txt").read_text()
    assert largest_difference(exported_weights(tmp_path / "one"), exported_weights(tmp_path / "two")) < 1e-5


@pytest.mark.needs_lerobot
def test_position_targets_need_no_cache_of_the_dataset(image_dataset, policies, caches, tmp_path):
    """A cache gives the width and the grid of its teacher even if it is of another teacher's features."""
    outcome = run_training(
        "--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", image_dataset, "--teacher", "oracle",
        "--cache", caches("bf16"), "--out", tmp_path / "run", *set_options(**POSITION, run__steps=1),
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr


# The mean of an image


def test_share_of_the_image_mean_is_subtracted_by_hand():
    targets = torch.tensor([[[[4.0, 0.0], [0.0, 2.0], [0.0, 0.0], [2.0, 4.0]]]])  # one image, one place without target
    expected = torch.tensor([[[[3.0, -1.0], [-1.0, 1.0], [0.0, 0.0], [1.0, 3.0]]]])  # half of the mean (2, 2)
    torch.testing.assert_close(subtract_image_mean(targets, 0.5), expected)
    assert subtract_image_mean(targets, 0.0) is targets


def test_each_image_has_its_own_mean():
    """A missing camera, zeros, and the other samples of the batch change nothing."""
    targets = torch.randn(2, 2, 5, 4)
    targets[1, 1] = 0
    found = subtract_image_mean(targets, 0.6)
    for sample, camera in ((0, 0), (0, 1), (1, 0)):
        image = targets[sample, camera]
        torch.testing.assert_close(found[sample, camera], image - 0.6 * image.mean(0))
    assert not found[1, 1].any()


def test_registration_subtracts_the_mean_of_the_visible_places():
    """The upper half of the student's image is a letterbox bar, whose places have no target."""
    features = Features({1: torch.randn(1, 1, 16, 8)}, (4, 4))
    window = (-1.0, 0.0, 1.0, 1.0)
    plain, normalized = (Registration((4, 4), [window], normalize_targets=share)(features)[1] for share in (0.0, 0.6))
    assert not plain[0, 0, :8].any() and not normalized[0, 0, :8].any()
    visible = plain[0, 0, 8:]
    torch.testing.assert_close(normalized[0, 0, 8:], visible - 0.6 * visible.mean(0))


@pytest.mark.needs_lerobot
def test_recipe_key_normalizes_cached_targets(load):
    recipe, resources = load(True, alignment__normalize_targets=0.6)
    (_, normalized), (_, plain) = (read_targets(*each)[0] for each in ((recipe, resources), load(True)))
    for layer, target in plain.items():
        torch.testing.assert_close(normalized[layer], subtract_image_mean(target, 0.6))
    with pytest.raises(UserError, match=r"alignment.normalize_targets must be between 0 and 1, got 1.5"):
        load(True, alignment__normalize_targets=1.5)


# The vision encoder


@pytest.mark.needs_lerobot
def test_recipe_vision_aligns_the_image_tokens_that_the_first_block_reads(image_dataset, teacher, policies, tmp_path):
    words = ["--recipe", "vision", "--policy", policies("smolvla"), "--dataset", image_dataset, "--teacher", teacher]
    small = {"run__steps": 2, "run__batch_size": 2, "run__log_every": 1, "data__workers": 0}
    outcome = run_training(*words, "--out", tmp_path / "run", *set_options(**small, teacher__dtype="float32"))
    assert outcome.code == 0, outcome.stderr
    assert [0 < line["alignment/0--1"] < 2 for line in step_records(tmp_path / "run")] == [True, True]
    assert [line["alignment_weight"] for line in step_records(tmp_path / "run")] == [0.1, 0.1]


@pytest.mark.needs_lerobot
def test_frozen_vision_encoder_cannot_be_aligned_alone(load):
    with pytest.raises(UserError, match=r"alignment.student_layers=\[0\] aligns the vision encoder alone, but parts"):
        load(True, alignment__student_layers=[0, 0, 0], parts__vision="frozen")
