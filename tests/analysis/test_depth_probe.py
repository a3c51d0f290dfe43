"""Depth probes: regression against torch's solver, layers with planted depth, and `rocket-hf analyze depth`."""

import csv
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from rocket_hf.analysis.depth_analysis import run_names
from rocket_hf.analysis.depth_heads import MlpHeads, RidgeHeads, solve_ridge
from rocket_hf.analysis.depth_probe import (
    DepthErrors,
    ProbeSettings,
    constant_errors,
    errors_per_episode,
    probe,
    probe_policy,
    target_depth,
)
from rocket_hf.analysis.depth_report import RUN, DepthErrorDifference, DepthResult
from rocket_hf.analysis.depth_samples import (
    TEST,
    TRAIN,
    VALIDATION,
    assign_parts,
    log_depth_of_patches,
    maps_to_patches,
    patches_to_maps,
    read_samples,
)
from rocket_hf.commands import main as rocket_hf
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.ridge_regression import LinearSums
from rocket_hf.training.vla.targets import image_window

GRID = (6, 6)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def samples(frames):
    return read_samples(frames, 40, [], 0.25)


@pytest.fixture(scope="session")
def processor(base):
    return RocketProcessor.from_pretrained(base)


# Ridge regression


def test_ridge_regression_from_sums_matches_least_squares_with_penalty_rows():
    features = 3 + torch.randn(90, 5, generator=seeded()) * torch.arange(1, 6)
    target = features @ torch.arange(5.0) + 2 + torch.randn(90, generator=seeded(1))
    parts = LinearSums(5), LinearSums(5)
    for number, (inputs, targets) in enumerate(zip(features.split(20), target.split(20), strict=True)):
        parts[number % 2].add(inputs, targets)
    sums = parts[0] + parts[1]
    torch.testing.assert_close(sums.variances(), features.double().var(dim=0, correction=0))
    penalties = 0.3 * 90 * features.double().var(dim=0, correction=0)
    rows = torch.cat([penalties.sqrt().diag(), torch.zeros(5, 1).double()], dim=1)
    inputs = torch.cat([torch.cat([features, torch.ones(90, 1)], dim=1).double(), rows])
    solution = torch.linalg.lstsq(inputs, torch.cat([target.double(), torch.zeros(5).double()])).solution
    torch.testing.assert_close(sums.weights(penalties), solution)
    torch.testing.assert_close(solve_ridge(sums, 0.3), solution)
    error = (inputs[:90] @ solution - target).square().mean().item()
    assert sums.mean_squared_error(solution) == pytest.approx(error)


def test_ridge_regression_ignores_constant_features():
    sums = LinearSums(2)
    sums.add(torch.tensor([[1.0, 5], [2, 5], [3, 5]]), torch.tensor([2.0, 4, 6]))
    weights = solve_ridge(sums, 1e-7)
    assert weights[0].item() == pytest.approx(2, abs=1e-4)
    assert sums.mean_squared_error(weights) < 1e-6


# Frames and their split


def test_episodes_are_split_within_each_task_or_by_held_out_task():
    tasks = {number: f"task {number % 2}" for number in range(40)}
    parts = assign_parts(tasks, [], 0.25)
    for task in ("task 0", "task 1"):
        task_parts = [part for episode, part in parts.items() if tasks[episode] == task]
        assert [task_parts.count(part) for part in (TEST, VALIDATION, TRAIN)] == [5, 3, 12]
    by_task = assign_parts(tasks, ["task 1"], 0.25)
    assert {tasks[episode] for episode, part in by_task.items() if part == TEST} == {"task 1"}
    assert {tasks[episode] for episode, part in by_task.items() if part != TEST} == {"task 0"}


def test_invalid_splits_are_rejected(frames):
    with pytest.raises(ValueError, match="no task 'press' to hold out"):
        assign_parts({0: "press a handle", 1: "reach"}, ["press"], 0.25)
    with pytest.raises(ValueError, match="record more episodes, or hold out others"):
        assign_parts({0: "reach", 1: "reach"}, [], 0.25)
    with pytest.raises(ValueError, match=r"must be between 0 and 1, got 1\.5"):
        assign_parts({0: "reach", 1: "reach"}, [], 1.5)
    with pytest.raises(ValueError, match="raise --samples"):
        read_samples(frames, 3, [], 0.25)


def test_samples_are_frames_of_the_dataset_and_parts_share_no_episode(frames, samples):
    first = frames[0]
    assert torch.equal(samples.images[0], first.images) and torch.equal(samples.depth[0], first.depth)
    assert len(samples) == 40 and samples.episodes[-1] == 3 and samples.states.shape == (40, 4)
    assert {TRAIN, VALIDATION, TEST} == set(samples.parts)
    for part in (TRAIN, VALIDATION, TEST):
        others = {samples.episodes[row] for other in {TRAIN, VALIDATION, TEST} - {part} for row in samples.rows(other)}
        assert not others & {samples.episodes[row] for row in samples.rows(part)}


# Depth in the policy's image


@pytest.mark.parametrize("resize", ["letterbox", "letterbox-top-left", "stretch"])
def test_depth_is_aligned_with_the_resized_image(base, resize):
    """The depth of an image of 30 x 64 pixels increases from left to right, which reveals a patch's source column."""
    processor = RocketProcessor.from_pretrained(base, resize=resize)
    column = (torch.arange(64) + 0.5) / 64
    depth = torch.exp(column - 1).expand(1, 1, 30, 64)
    predicted = log_depth_of_patches(depth, processor, GRID).view(6, 6)
    top, left, bottom, right = image_window(resize, (30, 64), 84)
    across = left + (torch.arange(6) + 0.5) / 6 * (right - left)
    down = top + (torch.arange(6) + 0.5) / 6 * (bottom - top)
    inside = (down > 0) & (down < 1)
    assert (
        predicted[~inside].isnan().all()
        and inside.sum() == {"letterbox": 2, "letterbox-top-left": 3, "stretch": 6}[resize]
    )
    middle = predicted[inside][:, 1:-1]
    torch.testing.assert_close(middle, (across - 1)[1:-1].expand_as(middle), atol=3e-3, rtol=0)


def test_patch_without_depth_for_most_pixels_is_nan(processor):
    depth = torch.ones(1, 1, 84, 84)
    depth[..., :14, :4] = 100  # less than half of the first patch
    depth[..., :14, 14:24] = 100  # more than half of the second
    predicted = log_depth_of_patches(depth, processor, GRID).flatten()
    assert predicted[0].item() == pytest.approx(0, abs=1e-5) and predicted[1].isnan() and predicted[2:].isfinite().all()


def test_cells_convert_to_patches_and_back():
    maps = torch.arange(2 * 3 * 2 * 2).view(1, 6, 4)  # 3 x 2 patch_rows of 2 x 2
    assert maps_to_patches(maps, 2)[0, 1].tolist() == [2, 3, 6, 7]
    assert torch.equal(patches_to_maps(maps_to_patches(maps, 2), (3, 2)), maps)


# Errors


def test_errors_per_episode_match_values_computed_by_hand():
    target = torch.tensor([1.0, 2, math.nan, 4]).log().view(2, 1, 2, 1)
    predicted = torch.tensor([1.1, 1.0, 7, 5.2]).log().view(1, 2, 1, 2, 1)
    episodes, relative, close = errors_per_episode(predicted, target, [7, 9])
    assert episodes == [7, 9]
    np.testing.assert_allclose(relative, [[(0.1 + 0.5) / 2], [0.3]], rtol=1e-6)
    np.testing.assert_allclose(close, [[0.5], [0]])


@pytest.fixture(scope="session")
def planted(samples, processor):
    """Features whose layer 0 is noise and whose layer 1 contains the depth linearly, with noise."""

    def layers(rows):
        target = target_depth(samples, processor, GRID, 1)[list(rows)].nan_to_num()  # (N, V, T, 1)
        noise = torch.randn(*target.shape[:3], 6, generator=seeded(rows[0]))
        rotation = torch.linalg.qr(torch.randn(6, 6, generator=seeded(1)))[0]
        return {0: 50 * noise, 1: torch.cat([target, noise[..., 1:]], dim=-1) @ rotation + 3}

    return layers


@pytest.mark.parametrize("head", ["ridge", "mlp"])
def test_probe_finds_planted_depth_and_noise_is_no_better_than_a_constant(head, planted, samples, processor):
    errors = probe(planted, samples, processor, GRID, ProbeSettings(head, batch_size=8))
    noise, depth = errors.relative.mean(axis=0)
    constant = constant_errors(samples, processor, GRID)["one constant"].relative.mean()
    assert errors.layers == [0, 1] and errors.selected_index == 1
    if head == "ridge":
        assert noise == pytest.approx(constant, rel=0.05)
        assert depth < 1e-3 and errors.close[:, 1].min() == 1
    else:
        assert noise > 0.7 * constant
        assert depth < 0.3 * noise


def test_ridge_errors_do_not_depend_on_the_batch_size(planted, samples, processor):
    def row_by_row(rows):
        return {1: torch.cat([planted([row])[1] for row in rows])}

    settings = [ProbeSettings("ridge", size) for size in (3, 64)]
    errors = [probe(row_by_row, samples, processor, GRID, each) for each in settings]
    np.testing.assert_allclose(errors[0].relative, errors[1].relative, rtol=1e-6)


def test_constant_per_patch_is_exact_for_a_static_scene(samples, processor):
    static = replace(samples, depth=samples.depth[:1].expand_as(samples.depth))
    for head, cells in (("ridge", 1), ("mlp", 16)):
        errors = constant_errors(static, processor, GRID, head)
        assert errors["constant per patch"].relative.max() < 1e-5
        assert errors["constant per patch"].predicted.shape[-1] == cells
        assert errors["one constant"].relative.min() > 0.05


def test_position_features_make_noise_as_good_as_the_constant_per_patch(planted, samples, processor):
    settings = ProbeSettings("ridge", batch_size=8, position_features=True)
    errors = probe(planted, samples, processor, GRID, settings)
    usual = constant_errors(samples, processor, GRID)["constant per patch"].relative.mean()
    noise, depth = errors.relative.mean(axis=0)
    assert noise == pytest.approx(usual, rel=0.1)
    assert depth < 0.1 * usual


def test_difference_between_runs_has_a_confidence_interval():
    random = np.random.default_rng(0)
    hard = random.normal(0.2, 0.05, size=(30, 1))
    layers = {"layers": [0], "validation_errors": [1.0], "episodes": list(range(30)), "close": hard, "predicted": None}

    def result(name, relative):
        return DepthResult(name, RUN, DepthErrors(relative=relative, **layers))

    first = result("rocket", hard - 0.01 + random.normal(0, 0.005, size=(30, 1)))
    second = result("none", hard)
    better = DepthErrorDifference.between(first, second)
    assert better.low < -0.01 < better.high < 0 and "so depth can be predicted better from rocket" in better.sentence()
    alike = DepthErrorDifference.between(result("rocket", hard + random.normal(0, 0.02, size=(30, 1))), second)
    assert alike.low < 0 < alike.high and "the difference is not significant" in alike.sentence()


# The command


def test_analyze_depth_probes_runs_untrained_policy_and_teacher(shared, train, rgbd, teacher, tmp_path, capsys):
    out = tmp_path / "out"
    words = [
        shared,
        train("other", run__seed=1),
        "--dataset",
        rgbd,
        "--teacher",
        teacher,
        "--samples",
        24,
        "--out",
        out,
    ]
    assert rocket_hf(["analyze", "depth", *map(str, words)]) == 0
    output = capsys.readouterr().out
    for part in ("shared ", "other ", "untrained ", "teacher vggt ", "constant per patch", "other against shared"):
        assert part in output
    rows = list(csv.DictReader((out / "depth.csv").open()))
    layers = {name: [int(row["layer"]) for row in rows if row["name"] == name] for name in ("shared", "untrained")}
    assert layers == {"shared": [0, 1, 2, 3, 4], "untrained": [0, 1, 2, 3, 4]}
    assert all(float(row["low"]) <= float(row["relative_error"]) <= float(row["high"]) for row in rows)
    report = json.loads((out / "depth.json").read_text())
    assert report["summary"] in output and report["held_out_frames"] > 0
    assert {len(each) for each in report["errors_by_episode"].values()} == {len(report["episodes"])}
    for name in ("depth.png", "predicted-depth.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_missing_initial_policy_is_reported_before_probing(shared, rgbd, tmp_path, capsys):
    run = shutil.copytree(shared, tmp_path / "moved")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text()) | {"policy": str(tmp_path / "gone")}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ["--dataset", str(rgbd), "--samples", "24", "--out", str(tmp_path / "out")]
    assert rocket_hf(["analyze", "depth", str(run), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1 and "pass a copy of the run's policy/ folder" in error
    copy = shutil.copytree(shared / "policy", tmp_path / "alone")
    assert rocket_hf(["analyze", "depth", str(copy), *words]) == 0
    assert "untrained" not in capsys.readouterr().out


def test_probe_policy_matches_regression_on_its_taps(base, samples, processor):
    """The errors of an untrained policy equal those of a regression on taps that the test extracts itself."""
    policy = RocketForActionPrediction.from_pretrained(base).eval()
    weights = load_file(base / "model.safetensors")
    errors = probe_policy(policy, processor, samples)
    images = {camera: samples.images[:, number] for number, camera in enumerate(samples.cameras)}
    batch = processor(images=images, task=samples.tasks, state=samples.states)
    with torch.no_grad():
        taps = policy.policy(dict(batch), [2]).taps[2]
    target = target_depth(samples, processor, GRID, 1)

    def batches(*parts):
        for part in parts:
            rows = samples.rows(part)
            yield {2: taps[rows]}, target[rows]

    heads = RidgeHeads()
    heads.fit(lambda: batches(TRAIN), lambda: batches(VALIDATION))
    predicted = heads.predict({2: taps[samples.rows(TEST)]})
    torch.testing.assert_close(errors.predicted[2:3], predicted, atol=1e-3, rtol=1e-3)
    assert all(torch.equal(weights[name], weight) for name, weight in policy.state_dict().items() if name in weights)


def test_mlp_head_predicts_sixteen_depths_per_patch(base, samples, processor):
    policy = RocketForActionPrediction.from_pretrained(base)
    errors = probe_policy(policy, processor, samples, ProbeSettings("mlp"))
    assert errors.predicted.shape == (5, len(samples.rows(TEST)), 2, 36, 16)
    assert MlpHeads.cells_per_side == 4 and errors.relative.max() < 1


def test_run_names_are_as_short_as_unique(tmp_path):
    assert run_names([tmp_path / "none", tmp_path / "rocket"]) == ["none", "rocket"]
    assert run_names([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]
    with pytest.raises(ValueError, match="listed twice"):
        run_names([tmp_path / "a", tmp_path / "a"])


def test_policy_of_another_robot_is_rejected(base, samples):
    policy = RocketForActionPrediction.from_pretrained(base)
    with pytest.raises(ValueError, match="the policy's camera 'front' has no depth in the dataset"):
        probe_policy(policy, RocketProcessor.from_pretrained(base, cameras=["front"]), samples)
    short = replace(samples, states=samples.states[:, :3])
    with pytest.raises(ValueError, match="a state of 4 numbers, but the dataset has states of 3 numbers"):
        probe_policy(policy, RocketProcessor.from_pretrained(base), short)
