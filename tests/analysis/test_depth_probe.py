"""How much layers tell of depth: regressions against torch's own solver, depth that is planted, and the command."""

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
from rocket_hf.analysis.depth_heads import MlpHeads, RidgeHeads, solved
from rocket_hf.analysis.depth_probe import (
    DepthErrors,
    constant_errors,
    depth_errors,
    errors_by_episode,
    probe,
    wanted_depth,
)
from rocket_hf.analysis.depth_report import RUN, Difference, Measured
from rocket_hf.analysis.depth_samples import (
    CHOOSE,
    LEARN,
    TEST,
    as_maps,
    in_patches,
    patch_log_depth,
    read_samples,
    split,
)
from rocket_hf.commands import main as rocket_hf
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.ridge_regression import LinearSums
from rocket_hf.training.vla.targets import picture_window

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


def test_sums_over_batches_give_least_squares_with_the_penalties_as_rows():
    features = 3 + torch.randn(90, 5, generator=seeded()) * torch.arange(1, 6)
    wanted = features @ torch.arange(5.0) + 2 + torch.randn(90, generator=seeded(1))
    parts = LinearSums(5), LinearSums(5)
    for number, (inputs, targets) in enumerate(zip(features.split(20), wanted.split(20), strict=True)):
        parts[number % 2].add(inputs, targets)
    sums = parts[0] + parts[1]
    torch.testing.assert_close(sums.variances(), features.double().var(dim=0, correction=0))
    penalties = 0.3 * 90 * features.double().var(dim=0, correction=0)
    rows = torch.cat([penalties.sqrt().diag(), torch.zeros(5, 1).double()], dim=1)
    inputs = torch.cat([torch.cat([features, torch.ones(90, 1)], dim=1).double(), rows])
    solution = torch.linalg.lstsq(inputs, torch.cat([wanted.double(), torch.zeros(5).double()])).solution
    torch.testing.assert_close(sums.weights(penalties), solution)
    torch.testing.assert_close(solved(sums, 0.3), solution)
    error = (inputs[:90] @ solution - wanted).square().mean().item()
    assert sums.mean_squared_error(solution) == pytest.approx(error)


def test_features_that_never_change_are_passed_over():
    sums = LinearSums(2)
    sums.add(torch.tensor([[1.0, 5], [2, 5], [3, 5]]), torch.tensor([2.0, 4, 6]))
    weights = solved(sums, 1e-7)
    assert weights[0].item() == pytest.approx(2, abs=1e-4)
    assert sums.mean_squared_error(weights) < 1e-6


# Frames and their parts


def test_episodes_are_split_within_each_task_and_none_is_in_two_parts():
    tasks = {number: f"task {number % 2}" for number in range(40)}
    parts = split(tasks, [], 0.25)
    for task in ("task 0", "task 1"):
        own = [part for episode, part in parts.items() if tasks[episode] == task]
        assert (own.count(TEST), own.count(CHOOSE), own.count(LEARN)) == (5, 3, 12)
    by_task = split(tasks, ["task 1"], 0.25)
    assert {tasks[episode] for episode, part in by_task.items() if part == TEST} == {"task 1"}
    assert {tasks[episode] for episode, part in by_task.items() if part != TEST} == {"task 0"}


def test_what_cannot_be_split_is_said(frames):
    with pytest.raises(ValueError, match="no task 'press' to hold out"):
        split({0: "press a handle", 1: "reach"}, ["press"], 0.25)
    with pytest.raises(ValueError, match="record more episodes, or hold out others"):
        split({0: "reach", 1: "reach"}, [], 0.25)
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        split({0: "reach", 1: "reach"}, [], 1.5)
    with pytest.raises(ValueError, match="raise --samples"):
        read_samples(frames, 3, [], 0.25)


def test_samples_are_frames_of_the_recording(frames, samples):
    first = frames[0]
    assert torch.equal(samples.images[0], first.images) and torch.equal(samples.depth[0], first.depth)
    assert len(samples) == 40 and samples.episodes[-1] == 3 and samples.states.shape == (40, 4)
    assert {LEARN, CHOOSE, TEST} == set(samples.parts)
    for part in (LEARN, CHOOSE, TEST):
        others = {samples.episodes[row] for other in {LEARN, CHOOSE, TEST} - {part} for row in samples.rows(other)}
        assert not others & {samples.episodes[row] for row in samples.rows(part)}


# Depth where the policy sees it


@pytest.mark.parametrize("resize", ["letterbox", "letterbox-top-left", "stretch"])
def test_depth_lies_where_the_policy_sees_it(base, resize):
    """A slope across a picture of 30 x 64 pixels: its patches tell the place that the window of the picture shows."""
    processor = RocketProcessor.from_pretrained(base, resize=resize)
    column = (torch.arange(64) + 0.5) / 64
    depth = torch.exp(column - 1).expand(1, 1, 30, 64)
    found = patch_log_depth(depth, processor, GRID).view(6, 6)
    top, left, bottom, right = picture_window(resize, (30, 64), 84)
    across = left + (torch.arange(6) + 0.5) / 6 * (right - left)
    down = top + (torch.arange(6) + 0.5) / 6 * (bottom - top)
    inside = (down > 0) & (down < 1)
    assert (
        found[~inside].isnan().all() and inside.sum() == {"letterbox": 2, "letterbox-top-left": 3, "stretch": 6}[resize]
    )
    middle = found[inside][:, 1:-1]
    torch.testing.assert_close(middle, (across - 1)[1:-1].expand_as(middle), atol=3e-3, rtol=0)


def test_a_patch_that_is_mostly_sky_has_no_depth(processor):
    depth = torch.ones(1, 1, 84, 84)
    depth[..., :14, :4] = 100  # less than half of the first patch
    depth[..., :14, 14:24] = 100  # more than half of the second
    found = patch_log_depth(depth, processor, GRID).flatten()
    assert found[0].item() == pytest.approx(0, abs=1e-5) and found[1].isnan() and found[2:].isfinite().all()


def test_cells_go_into_patches_and_back():
    maps = torch.arange(2 * 3 * 2 * 2).view(1, 6, 4)  # 3 x 2 patches of 2 x 2
    assert in_patches(maps, 2)[0, 1].tolist() == [2, 3, 6, 7]
    assert torch.equal(as_maps(in_patches(maps, 2), (3, 2)), maps)


# Errors


def test_errors_by_hand():
    wanted = torch.tensor([1.0, 2, math.nan, 4]).log().view(2, 1, 2, 1)
    found = torch.tensor([1.1, 1.0, 7, 5.2]).log().view(1, 2, 1, 2, 1)
    episodes, relative, close = errors_by_episode(found, wanted, [7, 9])
    assert episodes == [7, 9]
    np.testing.assert_allclose(relative, [[(0.1 + 0.5) / 2], [0.3]], rtol=1e-6)
    np.testing.assert_allclose(close, [[0.5], [0]])


@pytest.fixture(scope="session")
def planted(samples, processor):
    """Layer 0 is noise, layer 1 holds the depth among noise, linearly."""

    def layers(rows):
        wanted = wanted_depth(samples, processor, GRID, 1)[list(rows)].nan_to_num()  # (N, V, T, 1)
        noise = torch.randn(*wanted.shape[:3], 6, generator=seeded(rows[0]))
        turned = torch.linalg.qr(torch.randn(6, 6, generator=seeded(1)))[0]
        return {0: 50 * noise, 1: torch.cat([wanted, noise[..., 1:]], dim=-1) @ turned + 3}

    return layers


@pytest.mark.parametrize("head", ["ridge", "mlp"])
def test_planted_depth_is_found_and_noise_tells_what_a_constant_tells(head, planted, samples, processor):
    errors = probe(planted, samples, processor, GRID, head, batch_size=8)
    noise, depth = errors.relative.mean(axis=0)
    one = constant_errors(samples, processor, GRID)["one constant"].relative.mean()
    assert errors.layers == [0, 1] and errors.best == 1
    if head == "ridge":
        assert noise == pytest.approx(one, rel=0.05)
        assert depth < 1e-3 and errors.close[:, 1].min() == 1
    else:
        assert noise > 0.7 * one
        assert depth < 0.3 * noise


def test_batches_do_not_matter_to_ridge(planted, samples, processor):
    def still(rows):
        return {1: torch.cat([planted([row])[1] for row in rows])}

    errors = [probe(still, samples, processor, GRID, "ridge", size) for size in (3, 64)]
    np.testing.assert_allclose(errors[0].relative, errors[1].relative, rtol=1e-6)


def test_the_constant_of_each_place_is_best_where_nothing_moves(samples, processor):
    still = replace(samples, depth=samples.depth[:1].expand_as(samples.depth))
    for head, cells in (("ridge", 1), ("mlp", 16)):
        errors = constant_errors(still, processor, GRID, head)
        assert errors["constant of each place"].relative.max() < 1e-5
        assert errors["constant of each place"].found.shape[-1] == cells
        assert errors["one constant"].relative.min() > 0.05


def test_a_head_that_is_given_the_place_tells_what_is_usual_there(planted, samples, processor):
    errors = probe(planted, samples, processor, GRID, "ridge", batch_size=8, given_place=True)
    usual = constant_errors(samples, processor, GRID)["constant of each place"].relative.mean()
    noise, depth = errors.relative.mean(axis=0)
    assert noise == pytest.approx(usual, rel=0.1)
    assert depth < 0.1 * usual


def test_a_difference_between_runs_has_an_interval():
    random = np.random.default_rng(0)
    hard = random.normal(0.2, 0.05, size=(30, 1))
    layers = {"layers": [0], "choice_errors": [1.0], "episodes": list(range(30)), "close": hard, "found": None}

    def measure(name, relative):
        return Measured(name, RUN, DepthErrors(relative=relative, **layers))

    first = measure("rocket", hard - 0.01 + random.normal(0, 0.005, size=(30, 1)))
    second = measure("none", hard)
    better = Difference.of(first, second)
    assert better.low < -0.01 < better.high < 0 and "so rocket tells more of depth" in better.sentence()
    alike = Difference.of(measure("rocket", hard + random.normal(0, 0.02, size=(30, 1))), second)
    assert alike.low < 0 < alike.high and "do not tell them apart" in alike.sentence()


# The command


def test_the_command_probes_runs_their_start_and_a_teacher(shared, train, rgbd, teacher, tmp_path, capsys):
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
    said = capsys.readouterr().out
    for part in ("shared ", "other ", "untrained ", "teacher vggt ", "constant of each place", "other against shared"):
        assert part in said
    rows = list(csv.DictReader((out / "depth.csv").open()))
    layers = {name: [int(row["layer"]) for row in rows if row["name"] == name] for name in ("shared", "untrained")}
    assert layers == {"shared": [0, 1, 2, 3, 4], "untrained": [0, 1, 2, 3, 4]}
    assert all(float(row["low"]) <= float(row["relative_error"]) <= float(row["high"]) for row in rows)
    read = json.loads((out / "depth.json").read_text())
    assert read["answer"] in said and read["held_out_frames"] > 0
    assert {len(each) for each in read["errors_by_episode"].values()} == {len(read["episodes"])}
    for name in ("depth.png", "predicted-depth.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_a_start_that_has_gone_is_said_before_anything_is_probed(shared, rgbd, tmp_path, capsys):
    run = shutil.copytree(shared, tmp_path / "moved")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text()) | {"policy": str(tmp_path / "gone")}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ["--dataset", str(rgbd), "--samples", "24", "--out", str(tmp_path / "out")]
    assert rocket_hf(["analyze", "depth", str(run), *words]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1 and "give a copy of its policy/ alone" in said
    copy = shutil.copytree(shared / "policy", tmp_path / "alone")
    assert rocket_hf(["analyze", "depth", str(copy), *words]) == 0
    assert "untrained" not in capsys.readouterr().out


def test_the_errors_of_a_policy_are_those_of_its_taps(base, samples, processor):
    """The untrained policy from Python, against regression of its taps by hand."""
    policy = RocketForActionPrediction.from_pretrained(base).eval()
    weights = load_file(base / "model.safetensors")
    errors = depth_errors(policy, processor, samples)
    images = {camera: samples.images[:, number] for number, camera in enumerate(samples.cameras)}
    batch = processor(images=images, task=samples.tasks, state=samples.states)
    with torch.no_grad():
        taps = policy.policy(dict(batch), [2]).taps[2]
    wanted = wanted_depth(samples, processor, GRID, 1)

    def batches(*parts):
        for part in parts:
            rows = samples.rows(part)
            yield {2: taps[rows]}, wanted[rows]

    heads = RidgeHeads()
    heads.fit(lambda: batches(LEARN), lambda: batches(CHOOSE))
    found = heads.predict({2: taps[samples.rows(TEST)]})
    torch.testing.assert_close(errors.found[2:3], found, atol=1e-3, rtol=1e-3)
    assert all(torch.equal(weights[name], weight) for name, weight in policy.state_dict().items() if name in weights)


def test_a_depth_map_has_sixteen_depths_of_each_patch(base, samples, processor):
    policy = RocketForActionPrediction.from_pretrained(base)
    errors = depth_errors(policy, processor, samples, head="mlp")
    assert errors.found.shape == (5, len(samples.rows(TEST)), 2, 36, 16)
    assert MlpHeads.detail == 4 and errors.relative.max() < 1


def test_runs_are_named_as_briefly_as_tells_them_apart(tmp_path):
    assert run_names([tmp_path / "none", tmp_path / "rocket"]) == ["none", "rocket"]
    assert run_names([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]
    with pytest.raises(ValueError, match="named twice"):
        run_names([tmp_path / "a", tmp_path / "a"])


def test_a_policy_of_another_robot_is_refused(base, samples):
    policy = RocketForActionPrediction.from_pretrained(base)
    with pytest.raises(ValueError, match="the policy's camera 'front' has no depth here"):
        depth_errors(policy, RocketProcessor.from_pretrained(base, cameras=["front"]), samples)
    short = replace(samples, states=samples.states[:, :3])
    with pytest.raises(ValueError, match="a state of 4 numbers and that of the dataset has 3"):
        depth_errors(policy, RocketProcessor.from_pretrained(base), short)
