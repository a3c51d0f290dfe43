"""The sample order is a function of the position and contains each frame once per epoch."""

import pickle
from collections import Counter

import numpy as np
import pytest

from rocket_hf.training.data.mixture import EvenlySpacedOrder, FrameRanges, MixtureOrder, split_episodes

SMALL, LARGE = FrameRanges([range(10, 40)]), FrameRanges([range(0, 50), range(70, 120)])


def test_frame_ranges_are_concatenated():
    assert len(LARGE) == 100
    assert [LARGE[position] for position in (0, 49, 50, 99)] == [0, 49, 70, 119]


@pytest.mark.parametrize("shuffle", [True, False])
def test_each_frame_occurs_once_per_epoch(shuffle):
    order = MixtureOrder([LARGE], seed=1, shuffle=shuffle)
    every = [LARGE[position] for position in range(100)]
    epochs = [[order[position][1] for position in range(start, start + 100)] for start in (0, 100, 5000)]
    for frames in epochs:
        assert sorted(frames) == every
    assert (epochs[0] == epochs[1]) is (not shuffle)


def test_each_dataset_has_its_own_epochs():
    order = MixtureOrder([SMALL, LARGE], weights=[3.0, 1.0], seed=2)
    seen = {0: [], 1: []}
    for position in range(3000):
        dataset, frame = order[position]
        seen[dataset].append(frame)
    for dataset, frames in ((0, SMALL), (1, LARGE)):
        size = len(frames)
        for start in range(0, len(seen[dataset]) - size, size):
            assert len(set(seen[dataset][start : start + size])) == size


@pytest.mark.parametrize(
    ("weights", "shares"), [(None, (3 / 13, 10 / 13)), ([1.0, 1.0], (0.5, 0.5)), ([1e-3, 1.0], (1 / 1001, 1000 / 1001))]
)
def test_datasets_are_drawn_in_proportion_to_their_weights(weights, shares):
    order = MixtureOrder([SMALL, LARGE], weights, seed=3)
    positions = 10 * order.block_size
    counts = Counter(order[position][0] for position in range(positions))
    for dataset, share in enumerate(shares):
        assert counts[dataset] == pytest.approx(share * positions, abs=1)


def test_sample_at_a_position_does_not_depend_on_earlier_reads():
    order = MixtureOrder([SMALL, LARGE], seed=4)
    in_order = [order[position] for position in range(2500)]
    unpickled = pickle.loads(pickle.dumps(order))
    positions = np.random.default_rng(0).permutation(2500).tolist()
    assert [unpickled[position] for position in positions] == [in_order[position] for position in positions]
    assert [MixtureOrder([SMALL, LARGE], seed=4)[position] for position in positions[:20]] == [
        in_order[position] for position in positions[:20]
    ]


def test_different_seeds_give_different_orders():
    orders = [[MixtureOrder([LARGE], seed=seed)[position] for position in range(50)] for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_millions_of_frames_need_one_cached_permutation():
    order = MixtureOrder([FrameRanges([range(5_000_000)])], seed=5)
    assert len({order[position] for position in range(20_000)}) == 20_000
    (permutation,) = order.permutations.values()
    assert permutation.nbytes == 20_000_000


@pytest.mark.parametrize(
    ("frames", "weights", "part"),
    [
        ([SMALL, LARGE], [1.0], "2 datasets and 1 weights"),
        ([SMALL, LARGE], [1.0, None], "a weight, or none"),
        ([SMALL, LARGE], [1.0, 0.0], "above 0"),
        ([SMALL, LARGE], [1.0, float("nan")], "above 0"),
        ([SMALL, LARGE], [1.0, 1e-9], "below a millionth"),
        ([SMALL, FrameRanges([])], None, "dataset 1 of the mixture has no frames"),
    ],
)
def test_invalid_weights_are_refused(frames, weights, part):
    with pytest.raises(ValueError, match=part):
        MixtureOrder(frames, weights)


def test_episode_split_depends_on_the_seed_only():
    train, held_out = split_episodes(range(40), 0.1, seed=0)
    assert len(held_out) == 4
    assert sorted(train + held_out) == list(range(40))
    assert split_episodes(range(40), 0.1, seed=0) == (train, held_out)
    assert split_episodes(range(40), 0.1, seed=1)[1] != held_out


@pytest.mark.parametrize(("count", "share", "held_out"), [(2, 0.01, 1), (1, 0.5, 0), (10, 0.0, 0), (2, 0.99, 1)])
def test_both_parts_of_a_split_have_at_least_one_episode(count, share, held_out):
    assert [len(part) for part in split_episodes(range(count), share, 0)] == [count - held_out, held_out]


def test_holding_out_all_episodes_is_refused():
    with pytest.raises(ValueError, match=r"data\.validation"):
        split_episodes(range(4), 1.0, 0)


def test_validation_samples_are_fixed_and_evenly_spaced():
    order = EvenlySpacedOrder([SMALL, LARGE], 13)
    samples = [order[position] for position in range(len(order))]
    assert Counter(dataset for dataset, _ in samples) == {0: 3, 1: 10}
    assert [frame for dataset, frame in samples if dataset == 0] == [15, 25, 35]
    everything = EvenlySpacedOrder([SMALL], 1000)
    assert [everything[position][1] for position in range(len(everything))] == list(range(10, 40))
