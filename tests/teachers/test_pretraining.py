"""Tests of the pretraining of a small teacher: batches, colors, baselines, training and the output folder.

Medians are compared with a search, and regressions with torch's solver.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from rocket_hf.errors import UserError
from rocket_hf.teachers.load import EMBEDDED, load_teacher, teacher_folder
from rocket_hf.teachers.pretraining.card import render_card
from rocket_hf.teachers.pretraining.evaluation import best_constants, fit_ridge, patch_log_depth, relative_errors
from rocket_hf.teachers.pretraining.folder import read_geometry_model, round_as_stored, write_folder
from rocket_hf.teachers.pretraining.heads import GeometryModel
from rocket_hf.teachers.pretraining.make_teacher import check_held_out, check_size, make_teacher
from rocket_hf.teachers.pretraining.pretrain import PretrainingSettings, build_model, pretrain, small_vggt
from rocket_hf.teachers.pretraining.scenes import color_matrices, draw_scene_batch, jitter_colors

from .synthetic_scenes import SIDE, seeded, synthetic_scenes

# Batches


def test_color_matrices_keep_grays_and_third_of_turn_permutes_colors():
    matrices = color_matrices(torch.tensor([1.0, 0.3, 1.0]), torch.tensor([0.0, 0.5, 2 * math.pi / 3]))
    torch.testing.assert_close(matrices[0], torch.eye(3))
    torch.testing.assert_close(matrices @ torch.ones(3), torch.ones(3, 3))
    torch.testing.assert_close(matrices[2], torch.eye(3).roll(1, dims=0), atol=1e-6, rtol=0)


def test_each_image_gets_different_colors():
    images = torch.rand(1, 3, 8, 8, generator=seeded()).expand(2, 2, -1, -1, -1)
    found = jitter_colors(images, seeded()).flatten(0, 1)
    assert found.min() >= 0 and found.max() <= 1
    assert all(not torch.equal(found[one], found[other]) for one in range(4) for other in range(one))


def test_batch_has_cameras_in_random_order_with_their_targets():
    scenes = synthetic_scenes(6, cameras=3)
    images, targets = draw_scene_batch(scenes, 16, 2, seeded())
    assert images.shape == (16, 2, 3, SIDE, SIDE) and targets.depth.shape == (16, 2, SIDE, SIDE)
    known = {round(depth.item(), 3) for depth in scenes.depth.float().mean(dim=(-1, -2)).flatten()}
    assert {round(depth.item(), 3) for depth in targets.depth.mean(dim=(-1, -2)).flatten()} <= known
    first = {round(depth.item(), 3) for depth in targets.depth[:, 0].mean(dim=(-1, -2))}
    assert len(first) > 6  # six scenes with a fixed first camera would give at most 6


# Baselines and probes


def test_best_constant_equals_result_of_search():
    depth = 0.05 + 3 * torch.rand(4, 301, generator=seeded())
    depth[0, :20] = 100  # invalid depth
    found = best_constants(depth)
    candidates = torch.linspace(0.02, 3, 1500)
    for row, constant in zip(depth, found, strict=True):
        valid = row[row < 5]
        errors = ((candidates[:, None] - valid) / valid).abs().mean(dim=1)
        assert ((constant - valid) / valid).abs().mean() <= errors.min() + 1e-6


def test_relative_errors_exclude_sky_for_each_camera():
    target = torch.tensor([1.0, 2.0, 100.0, 4.0]).view(1, 2, 1, 2)
    found = torch.tensor([1.5, 2.0, 5.0, 3.0]).view(1, 2, 1, 2)
    assert relative_errors(found, target) == pytest.approx([0.25, 0.25])


def test_ridge_equals_least_squares_with_penalty_rows():
    features = torch.randn(60, 5, generator=seeded())
    target = features @ torch.arange(5.0) + 2 + 0.1 * torch.randn(60, generator=seeded(1))
    rows = math.sqrt(1e-3 * 60) * torch.eye(6, dtype=torch.float64)[:5]
    inputs = torch.cat([torch.cat([features.double(), torch.ones(60, 1).double()], dim=1), rows])
    targets = torch.cat([target.double(), torch.zeros(5).double()])
    torch.testing.assert_close(fit_ridge(features, target), torch.linalg.lstsq(inputs, targets).solution)


def test_patch_log_depth_is_mean_over_valid_pixels():
    scenes = synthetic_scenes(1, cameras=1)
    scenes.depth[:] = 1
    scenes.depth[..., :4, :16] = 2  # a quarter of the first patch
    scenes.depth[..., 16:, :9] = 100  # more than half of the third patch: sky
    found = patch_log_depth(scenes, build_model(small_vggt(SIDE), seed=0))
    torch.testing.assert_close(found, torch.tensor([math.log(2) / 4, 0, torch.nan, 0]), equal_nan=True)


# Training


@pytest.fixture(scope="module")
def trained() -> tuple[GeometryModel, dict]:
    settings = PretrainingSettings(steps=80, batch_size=4)
    return make_teacher(synthetic_scenes(), ["front", "wrist"], ["task 2"], settings)


def test_training_lowers_depth_losses(trained):
    losses = trained[1]["training"]["losses"]
    for name in ("depth", "gradient"):
        first, last = losses[name]
        assert last < 0.8 * first, losses


def test_trained_model_predicts_depth_better_than_constants(trained):
    depth, layers = trained[1]["depth"], trained[1]["layers"]
    assert depth["all cameras together"]["mean"] < depth["constant map of each camera"]["mean"]
    assert depth["constant map of each camera"]["mean"] < depth["one constant"]["mean"] * 1.2
    assert list(layers) == ["1", "2", "3", "4"]


def test_held_out_tasks_are_not_trained_on(trained):
    data = trained[1]["data"]
    assert (data["tasks"], data["held_out_tasks"]) == (["task 0", "task 1"], ["task 2"])
    assert (data["frames"], data["held_out_frames"]) == (16, 8)


def test_same_seed_gives_identical_weights():
    def weights(seed: int) -> dict[str, Tensor]:
        settings = PretrainingSettings(steps=3, batch_size=2, seed=seed)
        return pretrain(synthetic_scenes(4), small_vggt(SIDE), settings).model.state_dict()

    first, repeated, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[name], repeated[name]) for name in first)
    assert not torch.equal(first["aggregator.camera_token"], other["aggregator.camera_token"])


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    write_folder(
        folder, trained[0], trained[1] | {"commands": ["rocket-hf simulate ...", "rocket-hf pretrain-teacher ..."]}
    )
    return folder


def test_folder_loads_as_teacher_with_trained_layers(trained, folder):
    model, scenes = trained[0], synthetic_scenes(2)
    teacher = load_teacher(str(folder))
    found = teacher.features(scenes.images, [1, -1])
    with torch.no_grad():
        expected = model.aggregator(scenes.frames(), [1, 4])
    torch.testing.assert_close(found.maps[1], expected[1])
    torch.testing.assert_close(found.maps[-1], expected[4])
    assert teacher.card.license == "apache-2.0"
    assert {name.split(".")[0] for name in teacher.unused_tensors} == {"camera_head", "depth_head"}


def test_folder_gives_evaluated_predictions(trained, folder):
    model, frames = trained[0], synthetic_scenes(2).frames()
    with torch.no_grad():
        found, expected = read_geometry_model(folder)(frames), model(frames)
    assert all(torch.equal(vars(found)[name], vars(expected)[name]) for name in vars(expected))


def test_weights_are_rounded_as_stored():
    model = round_as_stored(build_model(small_vggt(SIDE), seed=0))
    assert all(torch.equal(weight, weight.half().float()) for weight in model.parameters())


# Invalid input


def test_unknown_held_out_task_raises():
    with pytest.raises(UserError, match="no task 'open a dor' to hold out: did you mean 'open a door'"):
        check_held_out(["open a dor"], {"open a door", "press a button"})


@pytest.mark.parametrize("held_out", [[], ["a", "b"]])
def test_holding_out_no_task_or_all_tasks_raises(held_out):
    with pytest.raises(UserError, match="of the 2 tasks are held out: hold out at least one with --held-out"):
        check_held_out(held_out, {"a", "b"})


def test_images_that_are_not_squares_of_whole_patches_raise():
    with pytest.raises(UserError, match=r"24 x 24 pixels .* a multiple of 16"):
        check_size(synthetic_scenes(1, side=24))


# The embedded teacher


@pytest.fixture(scope="module")
def report() -> dict:
    return json.loads((teacher_folder(EMBEDDED, None) / "report.json").read_text())


def test_embedded_teacher_is_in_package_and_small(report):
    teacher = load_teacher("embedded")
    assert (teacher.card.name, teacher.card.license) == ("embedded", "apache-2.0")
    assert (teacher.card.depth, teacher.card.width, teacher.card.image_size) == (4, 256, 128)
    assert sum(weight.numel() for weight in teacher.module.parameters()) == report["training"]["parameters"]
    weights = teacher_folder(EMBEDDED, None) / "model.safetensors"
    assert weights.stat().st_size <= 8_000_000
    with safe_open(weights, "pt") as file:
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118


def test_embedded_teacher_attends_across_cameras():
    teacher = load_teacher("embedded")
    images = torch.randint(0, 256, (1, 2, 3, 128, 128), dtype=torch.uint8, generator=seeded())
    both, one = (teacher.features(part, [1, 4]) for part in (images, images[:, :1]))
    assert both.grid == (8, 8) and both.maps[4].shape == (1, 2, 64, 256)
    assert not torch.allclose(both.maps[4][:, 0], one.maps[4][:, 0], atol=0.1)


def test_card_of_embedded_teacher_is_rendered_from_its_report(report):
    assert (teacher_folder(EMBEDDED, None) / "README.md").read_text() == render_card(report)
    assert [command.split()[1] for command in report["commands"]] == ["simulate", "pretrain-teacher"]


def test_embedded_teacher_predicts_depth_of_held_out_tasks(report):
    depth, layers = {name: errors["mean"] for name, errors in report["depth"].items()}, report["layers"]
    assert not set(report["data"]["tasks"]) & set(report["data"]["held_out_tasks"])
    assert depth["all cameras together"] < depth["each camera alone"]
    assert depth["all cameras together"] < 0.7 * depth["constant map of each camera"] < depth["one constant"]
    assert all(errors["trained"] < errors["untrained"] for errors in layers.values())


def test_local_folder_named_embedded_does_not_hide_embedded_teacher(tmp_path, monkeypatch):
    (tmp_path / EMBEDDED).mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_teacher("embedded").card.depth == 4
    with pytest.raises(UserError, match="has no revision 'v1'"):
        load_teacher("embedded", revision="v1")
