"""A feature cache of the oracle teacher, built from recorded demonstrations with depth, and training over it."""

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch

from rocket_hf.commands import main
from rocket_hf.rgbd_dataset import RgbdFrames
from rocket_hf.teachers.feature_cache import FeatureCache
from rocket_hf.teachers.oracle import fourier_code
from rocket_hf.tiny_dataset import write_tiny_dataset
from rocket_hf.training.data.dataset_frames import DatasetFrames

from ..training.conftest import run_training, set_options, step_records, write_policy

pytestmark = pytest.mark.needs_lerobot

CAMERAS = ("observation.images.corner2", "observation.images.gripperPOV")


def build(dataset: Path, out: Path, *more: str) -> list[str]:
    command = ["cache", "build", str(dataset), "--teacher", "oracle", "--out", str(out), "--device", "cpu"]
    return [*command, "--workers", "0", *more]


@pytest.fixture(scope="module")
def built(recorded, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("caches") / "oracle"
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(build(recorded[0], out)) == 0
    return out


def test_cached_features_are_the_codes_of_the_recorded_points(built, recorded):
    cache, frames = FeatureCache(built), RgbdFrames(recorded[0])
    assert cache.manifest.cameras == CAMERAS and cache.grid == (4, 4) and cache.width == 48
    cache.check_dataset(recorded[0].name, "local", DatasetFrames(str(recorded[0])).fingerprint)
    for index in (0, len(frames) // 2, len(frames) - 1):
        frame, rows = frames[index], torch.utils.data.default_collate([cache.read(index)])
        found = cache.decode(rows).maps[1][0]  # (cameras, 16, 48)
        for camera in range(2):
            pixels = torch.cartesian_prod(torch.arange(32.0), torch.arange(32.0)).flip(1)  # x, y
            rays = torch.linalg.inv(frame.intrinsics[camera]) @ torch.cat([pixels, torch.ones(1024, 1)], dim=1).T
            points = frame.poses[camera, :3, :3] @ (rays * frame.depth[camera].flatten()) + frame.poses[camera, :3, 3:]
            codes = fourier_code(points[:, None])[:, 0].view(48, 4, 8, 4, 8).mean((2, 4)).flatten(1).T
            torch.testing.assert_close(found[camera], codes, atol=0.01, rtol=0)


def test_info_and_verify_accept_the_cache(built, capsys):
    assert main(["cache", "info", str(built)]) == 0
    printed = capsys.readouterr().out
    assert "teacher     oracle" in printed and "layers      1 of 1" in printed and "license     apache-2.0" in printed
    assert main(["cache", "verify", str(built)]) == 0


def test_policy_trains_over_the_cache(built, recorded, tmp_path):
    policy = write_policy(tmp_path / "base", "pi05", cameras=["corner2", "gripperPOV"], state_dim=4, action_dim=4)
    changes = {"alignment__student_layers": [1, 3], "alignment__teacher_layers": [1, -1], "run__steps": 4}
    outcome = run_training(
        "--recipe", "tiny", "--policy", policy, "--dataset", recorded[0], "--teacher", "oracle", "--cache", built,
        "--out", tmp_path / "run", *set_options(**changes, run__log_every=1, data__augmentation__crop_area=0.8),
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    losses = [record["alignment/1-1"] for record in step_records(tmp_path / "run")]
    assert len(losses) == 4 and all(0 < loss < 2 for loss in losses)


def test_layers_are_compared_with_the_cache(built, recorded, tmp_path, capsys):
    policy = write_policy(tmp_path / "base", "pi05", cameras=["corner2", "gripperPOV"], state_dim=4, action_dim=4)
    words = ["layers", str(policy), str(recorded[0]), "--teacher", "oracle", "--cache", str(built), "--strategy", "cka"]
    assert main([*words, "--pairs", "1", "--samples", "8", "--workers", "0", "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)
    assert layers["teacher"] == [1] and 1 <= layers["student"][0] <= 3


def read_error(capsys, command: list[str]) -> str:
    assert main(command) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "Traceback" not in message
    return message


def test_dataset_without_depth_is_refused(tmp_path, capsys):
    dataset = write_tiny_dataset(tmp_path / "robot", episodes=2, frames=3)
    message = read_error(capsys, build(dataset, tmp_path / "out"))
    assert "robot contains no depth: record it with `rocket-hf simulate ... --depth`" in message
    assert not (tmp_path / "out").exists()


def test_camera_without_depth_and_other_resolution_are_refused(recorded, tmp_path, capsys):
    message = read_error(capsys, build(recorded[0], tmp_path / "out", "--cameras", "observation.images.corner"))
    assert "no depth of camera 'observation.images.corner': did you mean 'observation.images.corner2'?" in message
    message = read_error(capsys, build(recorded[0], tmp_path / "out", "--resolution", "64"))
    assert "reads depth in the size of the cameras: remove --resolution" in message


def test_training_without_the_cache_is_refused(recorded, tmp_path):
    policy = write_policy(tmp_path / "base", "pi05", cameras=["corner2", "gripperPOV"], state_dim=4, action_dim=4)
    outcome = run_training(
        "--recipe", "tiny", "--policy", policy, "--dataset", recorded[0], "--teacher", "oracle",
        "--out", tmp_path / "run", *set_options(alignment__student_layers=[1, 3], alignment__teacher_layers=[1, -1]),
    )  # fmt: skip
    assert outcome.code == 2 and "rocket-hf cache build DATASET --teacher oracle --out FOLDER" in outcome.stderr
