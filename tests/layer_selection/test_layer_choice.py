"""Layer selection strategies: the published lists, planted layers, and rejected arguments."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from rocket_hf.commands import main
from rocket_hf.layer_selection.by_measure import LayerBatch, SimilarityMeasure, build_measure, ranked_layers
from rocket_hf.layer_selection.choice import STRATEGIES, explicit_pairs
from rocket_hf.layer_selection.matching import best_matching, best_ordered_matching
from rocket_hf.layer_selection.measures import NEIGHBORS, LayerTable, ResidualChange, hsic_table, neighbor_table
from rocket_hf.training.vla.layers_by_depth import BY_DEPTH, pairs_by_depth, uniform

CPU = torch.device("cpu")
TEACHER = [3, 5, 7, 9, 11, 13, 15, 17, 19, 24]


def layers(*arguments) -> tuple[list[int], list[int]]:
    pairs = pairs_by_depth(*arguments)
    return [pair.student for pair in pairs], [pair.teacher for pair in pairs]


# By depth


@pytest.mark.parametrize(
    ("depth", "student"),
    [(32, [2, 4, 6, 8, 10, 12, 14, 16, 18, 31]), (18, [2, 3, 4, 5, 6, 7, 8, 9, 10, 18])],
)
def test_early_to_middle_reproduces_the_published_lists(depth, student):
    assert layers("early-to-middle+last", depth, 24, 10) == (student, TEACHER)


@pytest.mark.parametrize(
    ("depth", "count", "balanced"),
    [
        (32, 8, [4, 8, 12, 16, 20, 24, 28, 32]),
        (24, 8, [3, 6, 9, 12, 15, 18, 21, 24]),
        (32, 10, [3, 6, 10, 13, 16, 19, 22, 26, 29, 32]),
        (24, 10, [2, 5, 7, 10, 12, 14, 17, 19, 22, 24]),
        (18, 10, [2, 4, 5, 7, 9, 11, 13, 14, 16, 18]),
        (4, 3, [2, 3, 4]),
    ],
)
def test_uniform_layers_are_balanced(depth, count, balanced):
    assert uniform(depth, count)[0] == balanced


@pytest.mark.parametrize(
    ("strategy", "student", "teacher"),
    [("shallow", [1, 2, 3], [1, 2, 3]), ("middle", [4, 5, 6], [3, 4, 5]), ("deep", [7, 8, 9], [5, 6, 7])],
)
def test_shallow_middle_and_deep_select_neighboring_layers(strategy, student, teacher):
    assert layers(strategy, 9, 7, 3) == (student, teacher)


@pytest.mark.parametrize("strategy", BY_DEPTH)
def test_selected_layers_are_distinct_and_exist_for_every_depth_and_count(strategy):
    for student, teacher in itertools.product(range(1, 37, 5), (1, 4, 12, 24)):
        for count in range(1, min(student, teacher) + 1):
            for chosen, depth in zip(layers(strategy, student, teacher, count), (student, teacher), strict=True):
                assert len(chosen) == count and chosen == sorted(set(chosen)), (student, teacher, count)
                assert chosen[0] >= 1 and chosen[-1] <= depth, (student, teacher, count)


def test_explicit_layers_may_count_from_the_end():
    pairs = explicit_pairs([1, 2, -1], [3, 3, -2], 4, 6)
    assert [(pair.student, pair.teacher) for pair in pairs] == [(1, 3), (2, 3), (4, 5)]


# Matching


def best_by_exhaustive_search(similarity: np.ndarray, count: int, ordered: bool) -> float:
    rows, columns = similarity.shape
    best = -np.inf
    for chosen in itertools.combinations(range(rows), count):
        for partners in itertools.permutations(range(columns), count):
            if not ordered or list(partners) == sorted(partners):
                best = max(best, sum(similarity[pair] for pair in zip(chosen, partners, strict=True)))
    return best


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("match", "ordered"), [(best_matching, False), (best_ordered_matching, True)])
def test_matchings_equal_exhaustive_search(match, ordered, seed):
    random = np.random.default_rng(seed)
    similarity = random.normal(size=(5, 4))
    for count in range(1, 5):
        chosen = match(similarity, count)
        assert len(chosen) == count == len({row for row, _ in chosen}) == len({column for _, column in chosen})
        assert sum(similarity[pair] for pair in chosen) == pytest.approx(
            best_by_exhaustive_search(similarity, count, ordered)
        )
        columns = [column for _, column in chosen]
        assert [row for row, _ in chosen] == sorted(row for row, _ in chosen)
        assert not ordered or columns == sorted(columns)


# Measures


def full_hsic(x: Tensor, y: Tensor) -> Tensor:
    """Compute HSIC_1 by its definition: the mean of the U-statistic's kernel over all four distinct samples."""
    k, l = x @ x.T, y @ y.T  # noqa: E741
    terms = [k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in itertools.permutations(range(len(x)), 4)]
    return torch.stack(terms).mean()


def test_hsic_table_matches_the_definition():
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(7, width, generator=draw, dtype=torch.float64) + 3 for width in (3, 5))
    y[:, 0] += x[:, 1]
    table = hsic_table([x, y])
    for (row, one), (column, other) in itertools.product(enumerate((x, y)), repeat=2):
        assert table[row, column].item() == pytest.approx(full_hsic(one, other).item(), rel=1e-4)


def test_mean_over_all_small_batches_equals_the_value_of_all_samples():
    """Minibatch CKA is unbiased. The batches are all subsets of 5 of 8 samples."""
    draw = torch.Generator().manual_seed(1)
    x, y = (torch.randn(8, 4, generator=draw) for _ in range(2))
    y += x
    table = LayerTable(2, hsic_table, CPU)
    for chosen in itertools.combinations(range(8), 5):
        table.add([x[list(chosen)], y[list(chosen)]])
    whole = LayerTable(2, hsic_table, CPU)
    whole.add([x, y])
    assert table.sums / 56 == pytest.approx(whole.sums, rel=1e-4)
    assert table.table() == pytest.approx(whole.table(), rel=1e-4)


def test_cka_of_many_samples_approaches_the_classical_cka():
    """CKA is 1 for a rotation, and else |X'Y|^2 / (|X'X| |Y'Y|) of centered features (Kornblith et al. 2019)."""
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(3000, 6, generator=draw) * torch.tensor([3.0, 2, 1, 1, 1, 1]) + 5
    y = torch.cat([x[:, :2], torch.randn(3000, 3, generator=draw)], dim=1)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=draw)).Q
    features = [x, y, x @ rotation]
    table = LayerTable(3, hsic_table, CPU)
    for start in range(0, 3000, 300):
        table.add([each[start : start + 300] for each in features])
    a, b = (each - each.mean(dim=0) for each in (x, y))
    classical = (a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    assert table.table()[0, 1].item() == pytest.approx(classical.item(), abs=0.01)
    assert table.table()[0, 2].item() == pytest.approx(1, abs=1e-5)


def test_neighbor_table_matches_counting():
    draw = torch.Generator().manual_seed(3)
    x, y = torch.randn(40, 5, generator=draw), torch.randn(40, 9, generator=draw)
    y[:, :5] += 3 * x

    def neighbors(features: Tensor) -> list[set[int]]:
        features = features - features.mean(dim=0)
        rows = []
        for number, one in enumerate(features):
            cosines = torch.cosine_similarity(one[None], features, dim=1)
            others = [place for place in cosines.argsort(descending=True).tolist() if place != number]
            rows.append(set(others[:NEIGHBORS]))
        return rows

    shared = [len(a & b) / NEIGHBORS for a, b in zip(neighbors(x), neighbors(y), strict=True)]
    table = neighbor_table([x, y])
    assert table[0, 1].item() == pytest.approx(sum(shared) / 40)
    assert table.diagonal().tolist() == [1, 1]


def test_residual_change_ignores_tokens_of_missing_cameras():
    draw = torch.Generator().manual_seed(4)
    stream = {layer: torch.randn(2, 2, 3, 8, generator=draw) for layer in range(5)}
    mask = torch.tensor([[True, False], [True, True]])[..., None].expand(2, 2, 3)
    change = ResidualChange(4, [1, 3], CPU)
    change.add(stream, mask)
    similarity = change.similarity()
    for row, window in enumerate((1, 3)):
        for layer in range(window, 5):
            cosines = torch.cosine_similarity(stream[layer - window], stream[layer], dim=-1)
            expected = torch.cat([cosines[0, 0], cosines[1, 0], cosines[1, 1]]).mean()
            assert similarity[row, layer - 1].item() == pytest.approx(expected.item(), abs=1e-6)
    assert similarity[1, :2].isnan().all()


def test_ranked_layers_of_the_published_scores():
    """The scores are those of OpenVLA's 32 blocks in the public code."""
    scores = np.array([
        .8727, .9457, .9562, .9809, .9826, .9849, .9810, .9729, .9596, .9575, .9451, .9536, .9573, .9550, .9502, .9454,
        .9554, .9680, .9644, .9746, .9761, .9787, .9743, .9855, .9795, .9862, .9852, .9896, .9901, .9841, .9797, .9532,
    ])  # fmt: skip
    assert ranked_layers(scores, 8, "largest") == [1, 2, 11, 12, 14, 15, 16, 32]
    assert ranked_layers(scores, 8, "smallest") == [5, 6, 24, 26, 27, 28, 29, 30]


# Planted layers

DEPTH, CAMERAS, TOKENS, WIDTH = 5, 2, 16, 12


def planted(order: list[int], missing: bool = False) -> list[LayerBatch]:
    """Return batches whose teacher layer j is the student layer order[j - 1], rotated and scaled, with a little noise.

    If a camera is missing, its features are random in both models.
    """
    draw = torch.Generator().manual_seed(5)
    rotations = [torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=draw)).Q for _ in order]
    batches = []
    for _ in range(6):
        stream = [torch.randn(4, CAMERAS, TOKENS, WIDTH, generator=draw)]
        for _ in range(DEPTH):
            stream.append(stream[-1] + torch.randn(stream[0].shape, generator=draw))
        mask = torch.ones(4, CAMERAS, dtype=torch.bool)
        mask[:, 1] = not missing
        teacher = {}
        for layer, (source, rotation) in enumerate(zip(order, rotations, strict=True), start=1):
            teacher[layer] = stream[source] @ rotation * layer + 0.1 * torch.randn(stream[0].shape, generator=draw)
            teacher[layer][~mask] = torch.randn(teacher[layer][~mask].shape, generator=draw)
        batches.append(LayerBatch(dict(enumerate(stream)), teacher, mask))
    return batches


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("strategy", ["cka", "mutual-knn"])
def test_unordered_matching_finds_permuted_layers(strategy, missing):
    order = [4, 1, 5, 2, 3]
    measure = SimilarityMeasure(strategy, DEPTH, len(order), CPU, ordered=False)
    for batch in planted(order, missing):
        measure.add(batch)
    assert {(pair.student, pair.teacher) for pair in measure.pairs(5)} == {(4, 1), (1, 2), (5, 3), (2, 4), (3, 5)}
    assert all("its best" in pair.reason for pair in measure.pairs(5))


@pytest.mark.parametrize("strategy", ["cka", "mutual-knn"])
def test_ordered_matching_finds_layers_in_order(strategy):
    measure = SimilarityMeasure(strategy, DEPTH, 3, CPU)
    for batch in planted([1, 3, 5]):
        measure.add(batch)
    assert [(pair.student, pair.teacher) for pair in measure.pairs(3)] == [(1, 1), (3, 2), (5, 3)]


def test_size_of_the_sums_does_not_grow_with_the_samples():
    for strategy in ("cka", "mutual-knn", "similarity"):
        measure = build_measure(strategy, (DEPTH, 3), CPU, True, [1, 2], "largest")
        before = measure.sums.shape
        for batch in planted([1, 3, 5]):
            measure.add(batch)
        assert measure.sums.shape == before


# The command


def test_layers_command_prints_json():
    command = "layers --student-depth 32 --teacher-depth 24 --strategy uniform --pairs 8 --json"
    done = subprocess.run(
        [sys.executable, "-m", "rocket_hf.commands", *command.split()], capture_output=True, text=True
    )
    assert done.stdout == ('{"student": [4, 8, 12, 16, 20, 24, 28, 32], "teacher": [3, 6, 9, 12, 15, 18, 21, 24]}\n'), (
        done.stderr
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--student-depth 4 --teacher-depth 3 --pairs 4", "4 pairs are not possible with 4 student and 3 teacher"),
        ("--student-depth 4 --teacher-depth 3 --pairs 0", "set --pairs to 1..3"),
        ("--student-depth 4 --teacher-depth 3 --strategy unifrom --pairs 2", "did you mean 'uniform'?"),
        ("--student-depth 4 --teacher-depth 3 --strategy magic --pairs 2", "choose one of early-to-middle+last, uni"),
        ("--student-depth 4 --pairs 2", "pass either --teacher or --teacher-depth"),
        ("--teacher-depth 4 --pairs 2", "pass either POLICY or --student-depth"),
        ("--student-depth 4 --teacher-depth 3", "requires --pairs"),
        ("--student-depth 4 --teacher-depth 3 --strategy cka --pairs 2", "pass POLICY and DATASET"),
        ("policy data --strategy cka --pairs 2", "--strategy cka requires --teacher"),
        ("--student-depth 4 --teacher-depth 3 --strategy explicit", "requires --student-layers"),
        ("--student-depth 4 --teacher-depth 3 --strategy explicit --student-layers 1,5 --teacher-layers 1,2",
         "the student has no layer 5"),
        ("--student-depth 4 --teacher-depth 3 --strategy explicit --student-layers 2,1 --teacher-layers 1,2",
         "from shallow to deep"),
        ("--student-depth 4 --teacher-depth 3 --strategy explicit --student-layers 2 --teacher-layers 1,2",
         "--student-layers has 1 layers and --teacher-layers has 2: list pairs"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_reported_in_one_sentence(arguments, message, capsys):
    assert main(["layers", *arguments.split()]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1
    assert message in printed.err


def test_list_of_strategies_is_complete():
    assert set(STRATEGIES) == {*BY_DEPTH, "explicit", "similarity", "cka", "mutual-knn"}
