"""The pre-training of a small teacher: cameras, losses, colors, baselines and what it leaves behind.

Pictures are drawn whose brightness tells their depth. Rotations are scipy's, gradients are checked by finite
differences, medians and regressions against plain searches and torch's own solver.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from scipy.spatial.transform import Rotation
from torch import Tensor

from rocket_hf.teachers.load import EMBEDDED, load_teacher, teacher_folder
from rocket_hf.teachers.pretraining.card import card
from rocket_hf.teachers.pretraining.evaluation import best_constants, patch_log_depth, relative_errors, ridge
from rocket_hf.teachers.pretraining.folder import as_stored, read_geometry_model, write_folder
from rocket_hf.teachers.pretraining.geometry import (
    angles_of_view,
    quaternions,
    relative_poses,
    rotation_angles,
)
from rocket_hf.teachers.pretraining.heads import Geometry, GeometryModel
from rocket_hf.teachers.pretraining.losses import Truth, geometry_losses, weighted
from rocket_hf.teachers.pretraining.make_teacher import check_held_out, check_size, make_teacher
from rocket_hf.teachers.pretraining.pretrain import Settings, new_model, pretrain, small_vggt
from rocket_hf.teachers.pretraining.scenes import Scenes, color_mixers, draw_batch, recolored

SIDE = 32


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_poses(*shape: int) -> Tensor:
    """(*shape, 4, 4)"""
    count = math.prod(shape)
    poses = torch.eye(4).repeat(count, 1, 1)
    poses[:, :3, :3] = torch.from_numpy(Rotation.random(count, random_state=0).as_matrix())
    poses[:, :3, 3] = torch.randn(count, 3, generator=seeded())
    return poses.unflatten(0, shape)


def drawn_scenes(count: int = 24, cameras: int = 2, side: int = SIDE) -> Scenes:
    """Slopes from 0.5 to 3 meters: the nearer, the brighter. Three tasks."""
    draw = torch.rand(2, count, cameras, 1, 1, generator=seeded())
    depth = 0.5 + 1.5 * draw[0] + draw[1] * torch.linspace(0, 1, side).expand(side, side)
    pictures = (255 * (1 - depth / 3)).byte().unsqueeze(2).expand(-1, -1, 3, -1, -1)
    tasks = [f"task {number % 3}" for number in range(count)]
    return Scenes(pictures, depth.half(), torch.full((count, cameras), 0.9), random_poses(count, cameras), tasks)


# Cameras


def test_quaternions_are_those_of_scipy():
    near_half_turns = Rotation.from_rotvec([[math.pi - 1e-4, 0, 0], [0, 3.14, 0], [0, 0.01, -3.14], [0, 0, 0]])
    for rotations in (Rotation.random(200, random_state=1), near_half_turns):
        found = quaternions(torch.from_numpy(rotations.as_matrix()))
        real_last = torch.from_numpy(rotations.as_quat(canonical=True))
        torch.testing.assert_close(found, real_last.roll(1, dims=-1))


def test_rotation_angles_are_those_of_scipy():
    first, second = (Rotation.random(50, random_state=seed) for seed in (1, 2))
    found = rotation_angles(*(quaternions(torch.from_numpy(each.as_matrix())) for each in (first, second)))
    wanted = torch.from_numpy((first.inv() * second).magnitude()).rad2deg()
    torch.testing.assert_close(found, wanted)


def test_a_point_goes_from_a_camera_to_the_first_camera_as_through_the_world():
    poses = random_poses(2, 3)
    point = torch.tensor([0.1, -0.2, 1.5, 1])
    through_world = torch.linalg.solve(poses[:, :1], poses @ point[:, None])
    torch.testing.assert_close(relative_poses(poses) @ point[:, None], through_world)
    torch.testing.assert_close(relative_poses(poses)[:, 0], torch.eye(4).expand(2, 4, 4), atol=1e-5, rtol=0)


def test_a_square_picture_of_half_its_side_in_focal_length_sees_a_right_angle():
    intrinsics = torch.tensor([[64.0, 0, 63.5], [0, 64, 63.5], [0, 0, 1]])
    assert angles_of_view(intrinsics, 128).item() == pytest.approx(math.pi / 2)


# Losses


def geometry(log_depth: Tensor, quaternion: Tensor | None = None) -> Geometry:
    scenes, frames = log_depth.shape[:2]
    still = torch.tensor([1.0, 0, 0, 0]).expand(scenes, frames, 4)
    return Geometry(
        log_depth,
        torch.zeros(scenes, frames, 3),
        still if quaternion is None else quaternion.expand(scenes, frames, 4),
        torch.ones(scenes, frames),
    )


def truth(depth: Tensor) -> Truth:
    found = geometry(depth.log())
    return Truth(depth, found.translations, found.quaternions, found.angles_of_view)


def test_twice_the_depth_costs_its_logarithm_and_no_gradient():
    depth = 0.5 + torch.rand(2, 2, 16, 16, generator=seeded())
    losses = geometry_losses(geometry((2 * depth).log()), truth(depth))
    assert losses["depth"].item() == pytest.approx(math.log(2), rel=1e-5)
    assert losses["gradient"].item() == pytest.approx(0, abs=1e-6)


def test_a_step_costs_where_it_is_crossed():
    """Of 16 columns, a step of 1 in the middle is crossed by 1 of 15 neighbors, 2 of 14, 4 of 12 and 8 of 8."""
    found = torch.zeros(1, 1, 16, 16)
    found[..., 8:] = 1
    losses = geometry_losses(geometry(found), truth(torch.ones(1, 1, 16, 16)))
    crossed = (1 / 15 + 2 / 14 + 4 / 12 + 8 / 8) / 4
    assert losses["gradient"].item() == pytest.approx(crossed / 2)  # along rows, and nothing along columns


def test_the_sky_counts_nowhere():
    depth = torch.ones(1, 1, 16, 16)
    depth[..., :5] = 100
    found = torch.randn(1, 1, 16, 16, generator=seeded()).requires_grad_()
    losses = geometry_losses(geometry(found), truth(depth))
    (gradient,) = torch.autograd.grad(losses["depth"] + losses["gradient"], found)
    assert not gradient[..., :5].any() and gradient[..., 5:].all()


def test_a_quaternion_and_its_opposite_are_one_rotation():
    depth = torch.ones(1, 2, 16, 16)
    opposite = geometry_losses(geometry(depth.log(), torch.tensor([-1.0, 0, 0, 0])), truth(depth))
    half_turn = geometry_losses(geometry(depth.log(), torch.tensor([0.0, 0, 1, 0])), truth(depth))
    assert opposite["rotation"].item() == 0
    assert half_turn["rotation"].item() == pytest.approx(math.sqrt(2))


def test_a_camera_alone_is_not_placed():
    depth = torch.ones(2, 1, 16, 16)
    found = geometry(depth.log())
    found.translations = found.translations + 1
    losses = geometry_losses(found, truth(depth))
    assert losses["translation"].item() == losses["rotation"].item() == 0


def test_gradients_are_those_of_finite_differences():
    draw = seeded()
    depth = 0.5 + torch.rand(1, 2, 9, 9, generator=draw).double()
    wanted = truth(depth)

    def loss(log_depth: Tensor, translations: Tensor, quaternion: Tensor, angles: Tensor) -> Tensor:
        return weighted(geometry_losses(Geometry(log_depth, translations, quaternion, angles), wanted))

    shapes = [(1, 2, 9, 9), (1, 2, 3), (1, 2, 4), (1, 2)]
    inputs = [torch.randn(shape, generator=draw).double().requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(loss, inputs)


# Batches


def test_grays_stay_and_a_third_of_a_turn_exchanges_colors():
    mixers = color_mixers(torch.tensor([1.0, 0.3, 1.0]), torch.tensor([0.0, 0.5, 2 * math.pi / 3]))
    torch.testing.assert_close(mixers[0], torch.eye(3))
    torch.testing.assert_close(mixers @ torch.ones(3), torch.ones(3, 3))
    torch.testing.assert_close(mixers[2], torch.eye(3).roll(1, dims=0), atol=1e-6, rtol=0)


def test_every_picture_gets_a_color_of_its_own():
    pictures = torch.rand(1, 3, 8, 8, generator=seeded()).expand(2, 2, -1, -1, -1)
    found = recolored(pictures, seeded()).flatten(0, 1)
    assert found.min() >= 0 and found.max() <= 1
    assert all(not torch.equal(found[one], found[other]) for one in range(4) for other in range(one))


def test_a_batch_has_other_cameras_first_each_with_its_own_truth():
    scenes = drawn_scenes(6, cameras=3)
    pictures, wanted = draw_batch(scenes, 16, 2, seeded())
    assert pictures.shape == (16, 2, 3, SIDE, SIDE) and wanted.depth.shape == (16, 2, SIDE, SIDE)
    known = {round(depth.item(), 3) for depth in scenes.depth.float().mean(dim=(-1, -2)).flatten()}
    assert {round(depth.item(), 3) for depth in wanted.depth.mean(dim=(-1, -2)).flatten()} <= known
    first = {round(depth.item(), 3) for depth in wanted.depth[:, 0].mean(dim=(-1, -2))}
    assert len(first) > 6  # more than one camera of six scenes could give


# Baselines and probes


def test_the_best_constant_is_found_by_search():
    depth = 0.05 + 3 * torch.rand(4, 301, generator=seeded())
    depth[0, :20] = 100  # does not count
    found = best_constants(depth)
    tried = torch.linspace(0.02, 3, 1500)
    for row, constant in zip(depth, found, strict=True):
        counted = row[row < 5]
        errors = ((tried[:, None] - counted) / counted).abs().mean(dim=1)
        assert ((constant - counted) / counted).abs().mean() <= errors.min() + 1e-6


def test_relative_errors_are_of_each_camera_without_the_sky():
    wanted = torch.tensor([1.0, 2.0, 100.0, 4.0]).view(1, 2, 1, 2)
    found = torch.tensor([1.5, 2.0, 5.0, 3.0]).view(1, 2, 1, 2)
    assert relative_errors(found, wanted) == pytest.approx([0.25, 0.25])


def test_ridge_is_least_squares_with_the_penalty_as_rows():
    features = torch.randn(60, 5, generator=seeded())
    wanted = features @ torch.arange(5.0) + 2 + 0.1 * torch.randn(60, generator=seeded(1))
    rows = math.sqrt(1e-3 * 60) * torch.eye(6, dtype=torch.float64)[:5]
    inputs = torch.cat([torch.cat([features.double(), torch.ones(60, 1).double()], dim=1), rows])
    targets = torch.cat([wanted.double(), torch.zeros(5).double()])
    torch.testing.assert_close(ridge(features, wanted), torch.linalg.lstsq(inputs, targets).solution)


def test_a_patch_has_the_mean_log_depth_of_what_counts():
    scenes = drawn_scenes(1, cameras=1)
    scenes.depth[:] = 1
    scenes.depth[..., :4, :16] = 2  # a quarter of the first patch
    scenes.depth[..., 16:, :9] = 100  # more than half of the third patch: sky
    found = patch_log_depth(scenes, new_model(small_vggt(SIDE), seed=0))
    torch.testing.assert_close(found, torch.tensor([math.log(2) / 4, 0, torch.nan, 0]), equal_nan=True)


# Training


@pytest.fixture(scope="module")
def made() -> tuple[GeometryModel, dict]:
    settings = Settings(steps=80, batch_size=4)
    return make_teacher(drawn_scenes(), ["front", "wrist"], ["task 2"], settings)


def test_training_lowers_every_loss_of_depth(made):
    losses = made[1]["training"]["losses"]
    for name in ("depth", "gradient"):
        first, last = losses[name]
        assert last < 0.8 * first, losses


def test_what_is_trained_sees_depth_better_than_constants_and_than_before(made):
    depth, layers = made[1]["depth"], made[1]["layers"]
    assert depth["all cameras together"]["mean"] < depth["constant map of each camera"]["mean"]
    assert depth["constant map of each camera"]["mean"] < depth["one constant"]["mean"] * 1.2
    assert list(layers) == ["1", "2", "3", "4"]


def test_tasks_held_out_are_not_trained_on(made):
    data = made[1]["data"]
    assert (data["tasks"], data["held_out_tasks"]) == (["task 0", "task 1"], ["task 2"])
    assert (data["frames"], data["held_out_frames"]) == (16, 8)


def test_the_same_seed_gives_the_same_weights_bit_for_bit():
    def weights(seed: int) -> dict[str, Tensor]:
        settings = Settings(steps=3, batch_size=2, seed=seed)
        return pretrain(drawn_scenes(4), small_vggt(SIDE), settings).model.state_dict()

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["aggregator.camera_token"], other["aggregator.camera_token"])


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    write_folder(folder, made[0], made[1] | {"commands": ["rocket-hf simulate ...", "rocket-hf pretrain-teacher ..."]})
    return folder


def test_the_folder_is_a_teacher_whose_layers_are_those_that_were_trained(made, folder):
    model, scenes = made[0], drawn_scenes(2)
    teacher = load_teacher(str(folder))
    found = teacher.features(scenes.images, [1, -1])
    with torch.no_grad():
        wanted = model.aggregator(scenes.frames(), [1, 4])
    torch.testing.assert_close(found.maps[1], wanted[1])
    torch.testing.assert_close(found.maps[-1], wanted[4])
    assert teacher.card.license == "apache-2.0"
    assert {name.split(".")[0] for name in teacher.unused_tensors} == {"camera_head", "depth_head"}


def test_the_folder_gives_the_predictions_that_were_measured(made, folder):
    model, frames = made[0], drawn_scenes(2).frames()
    with torch.no_grad():
        found, wanted = read_geometry_model(folder)(frames), model(frames)
    assert all(torch.equal(vars(found)[name], vars(wanted)[name]) for name in vars(wanted))


def test_what_is_measured_is_what_is_stored():
    model = as_stored(new_model(small_vggt(SIDE), seed=0))
    assert all(torch.equal(weight, weight.half().float()) for weight in model.parameters())


# Wrong input


def test_a_task_that_is_not_there_cannot_be_held_out():
    with pytest.raises(ValueError, match="no task 'open a dor' to hold out: did you mean 'open a door'"):
        check_held_out(["open a dor"], {"open a door", "press a button"})


@pytest.mark.parametrize("held_out", [[], ["a", "b"]])
def test_some_tasks_are_held_out_and_others_not(held_out):
    with pytest.raises(ValueError, match="hold out some of the 2 tasks"):
        check_held_out(held_out, {"a", "b"})


def test_pictures_are_squares_of_whole_patches():
    with pytest.raises(ValueError, match=r"24 x 24 pixels .* a multiple of 16"):
        check_size(drawn_scenes(1, side=24))


# The embedded teacher


@pytest.fixture(scope="module")
def report() -> dict:
    return json.loads((teacher_folder(EMBEDDED, None) / "report.json").read_text())


def test_the_embedded_teacher_is_here_and_small(report):
    teacher = load_teacher("embedded")
    assert (teacher.card.name, teacher.card.license) == ("embedded", "apache-2.0")
    assert (teacher.card.depth, teacher.card.width, teacher.card.image_size) == (4, 256, 128)
    assert sum(weight.numel() for weight in teacher.module.parameters()) == report["training"]["parameters"]
    weights = teacher_folder(EMBEDDED, None) / "model.safetensors"
    assert weights.stat().st_size <= 8_000_000
    with safe_open(weights, "pt") as file:
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118


def test_its_features_are_those_of_whole_scenes():
    teacher = load_teacher("embedded")
    pictures = torch.randint(0, 256, (1, 2, 3, 128, 128), dtype=torch.uint8, generator=seeded())
    both, one = (teacher.features(part, [1, 4]) for part in (pictures, pictures[:, :1]))
    assert both.grid == (8, 8) and both.maps[4].shape == (1, 2, 64, 256)
    assert not torch.allclose(both.maps[4][:, 0], one.maps[4][:, 0], atol=0.1)


def test_the_card_of_the_embedded_teacher_tells_the_numbers_of_its_report(report):
    assert (teacher_folder(EMBEDDED, None) / "README.md").read_text() == card(report)
    assert [command.split()[1] for command in report["commands"]] == ["simulate", "pretrain-teacher"]


def test_the_embedded_teacher_sees_depth_on_tasks_that_it_was_not_trained_on(report):
    depth, layers = {name: errors["mean"] for name, errors in report["depth"].items()}, report["layers"]
    assert not set(report["data"]["tasks"]) & set(report["data"]["held_out_tasks"])
    assert depth["all cameras together"] < depth["each camera alone"]
    assert depth["all cameras together"] < 0.7 * depth["constant map of each camera"] < depth["one constant"]
    assert all(errors["trained"] < errors["untrained"] for errors in layers.values())


def test_a_folder_beside_it_with_its_name_does_not_hide_it(tmp_path, monkeypatch):
    (tmp_path / EMBEDDED).mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_teacher("embedded").card.depth == 4
    with pytest.raises(ValueError, match="has no revision 'v1'"):
        load_teacher("embedded", revision="v1")
