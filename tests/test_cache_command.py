"""`rocket-hf cache` on a real LeRobot dataset, with a tiny VGGT in the public layout."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import PartialState

from rocket_hf.commands import main
from rocket_hf.teachers.cache_estimate import BatchSeconds, format_estimate, measure_batch
from rocket_hf.teachers.cache_manifest import Manifest
from rocket_hf.teachers.cache_shards import shard_path
from rocket_hf.teachers.dataset_identity import dataset_fingerprint, image_size_of
from rocket_hf.teachers.feature_cache import FeatureCache
from rocket_hf.teachers.load import load_teacher
from rocket_hf.teachers.scene import scene_images
from rocket_hf.tiny_dataset import write_tiny_dataset
from rocket_hf.training.data.dataset_frames import DatasetFrames
from tests.tiny_vggt import write_tiny_vggt

from .clean_processes import free_port, run_clean

pytestmark = pytest.mark.needs_lerobot

FRONT, WRIST = "observation.images.front", "observation.images.wrist"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_tiny_dataset(tmp_path_factory.mktemp("datasets") / "robot", episodes=2, frames=4)


@pytest.fixture(scope="module")
def vggt(tmp_path_factory) -> Path:
    return write_tiny_vggt(tmp_path_factory.mktemp("teachers") / "vggt", license="cc-by-nc-4.0")


def arguments(dataset: Path, vggt: Path, out: Path, *more: str) -> list[str]:
    command = ["cache", "build", str(dataset), "--teacher", str(vggt), "--out", str(out), "--device", "cpu"]
    return [*command, "--workers", "0", "--layers", "2,-1", *more]


@pytest.fixture(scope="module")
def built(dataset, vggt, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("caches") / "built"
    assert main(arguments(dataset, vggt, out, "--storage", "int8")) == 0
    return out


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_frames_equal_those_read_by_lerobot(dataset):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    theirs, ours = LeRobotDataset("local/robot", root=dataset), DatasetFrames(str(dataset))
    assert len(ours) == len(theirs) == 9
    assert ours.sizes == {FRONT: (48, 64), WRIST: (32, 32)}
    for index in (0, 3, 4, 8):
        frame = theirs[index]
        assert frame["index"] == index
        for camera, image in zip(ours.sizes, ours.read_images([index]), strict=True):
            torch.testing.assert_close(image[0] / 255, frame[camera])
    assert ours.fingerprint == dataset_fingerprint(theirs.meta)


def test_dataset_recorded_again_has_other_fingerprint(dataset, tmp_path):
    recorded_again = write_tiny_dataset(tmp_path / "robot", episodes=2, frames=4, seed=1)
    assert DatasetFrames(str(recorded_again)).fingerprint != DatasetFrames(str(dataset)).fingerprint
    copy = shutil.copytree(dataset, tmp_path / "copy")
    assert DatasetFrames(str(copy), [WRIST]).fingerprint == DatasetFrames(str(dataset)).fingerprint


@pytest.mark.parametrize(
    ("shape", "names"),
    [([4, 6, 3], ["height", "width", "channels"]), ([3, 4, 6], ["channel", "height", "width"]), ([4, 6, 3], None)],
)
def test_image_size_is_read_from_shapes_with_channels_first_or_last(shape, names):
    assert image_size_of(shape, names) == (4, 6)


def test_cached_features_equal_live_features_of_every_frame(built, dataset, vggt):
    cache, frames = FeatureCache(built), DatasetFrames(str(dataset))
    cache.check_dataset("robot", "local", frames.fingerprint)
    teacher = load_teacher(str(vggt))
    live = teacher.features(scene_images(frames.read_images(range(9)), teacher), [2, -1])
    found = cache.decode(torch.utils.data.default_collate([cache.read(index) for index in range(9)]))
    assert found.grid == live.grid == (3, 5)
    for layer in (2, -1):
        assert torch.cosine_similarity(found.maps[layer], live.maps[layer], dim=-1).mean() >= 0.999


def test_info_reports_finished_and_missing_shards(built, capsys, tmp_path):
    assert main(["cache", "info", str(built)]) == 0
    printed = capsys.readouterr().out
    for line in (
        f"cameras     {FRONT}, {WRIST}",
        "license     cc-by-nc-4.0",
        "layers      2, -1 of 4",
        "9 of 9, in 1 of 1",
    ):
        assert line in printed
    half = shutil.copytree(built, tmp_path / "half")
    shard_path(half, 0).unlink()
    assert main(["cache", "info", str(half)]) == 0
    assert "0 of 9, in 0 of 1 shards" in capsys.readouterr().out


def test_verify_names_corrupt_shard(built, capsys, tmp_path):
    assert main(["cache", "verify", str(built)]) == 0
    copy = shutil.copytree(built, tmp_path / "copy")
    content = bytearray(shard_path(copy, 0).read_bytes())
    content[-1] ^= 1
    shard_path(copy, 0).write_bytes(content)
    assert main(["cache", "verify", str(copy)]) == 2
    printed = capsys.readouterr()
    assert str(shard_path(copy, 0)) in printed.err
    assert "Traceback" not in printed.err


def test_build_prints_license_disk_variance_and_next_command(dataset, vggt, tmp_path, capsys):
    out = tmp_path / "projected"
    more = ["--storage", "projected", "--width", "8", "--cameras", WRIST, "--grid", "1x2", "--resolution", "84"]
    assert main(arguments(dataset, vggt, out, *more)) == 0
    printed = capsys.readouterr().out
    assert "The teacher vggt is licensed under cc-by-nc-4.0, which forbids commercial use" in printed
    assert "disk       " in printed and "free" in printed
    kept = FeatureCache(out).manifest.kept
    assert [f"8 of 32 dimensions keep {share:.2%} of the variance" in printed for share in kept] == [True, True]
    assert printed.splitlines()[-1].endswith(f"--cache {out}")
    manifest = Manifest.load(out)
    assert (manifest.cameras, manifest.grid, manifest.input_size) == ((WRIST,), (1, 2), (84, 84))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--layers", "9"], "vggt has no layer 9"),
        (["--cameras", "observation.images.frond"], f"did you mean '{FRONT}'"),
        (["--storage", "projected", "--width", "64"], "width of projected features must be in 1..32"),
        (["--resolution", "best"], "resolution must be"),
        (["--teacher", "nowhere"], "'nowhere'"),
    ],
)
def test_invalid_input_prints_one_message_and_writes_nothing(dataset, vggt, tmp_path, capsys, change, message):
    assert main(arguments(dataset, vggt, tmp_path / "out", *change)) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_folder_without_dataset_fails(vggt, tmp_path, capsys):
    assert main(arguments(tmp_path, vggt, tmp_path / "out")) == 2
    assert "is not a LeRobot dataset" in capsys.readouterr().err


def test_teacher_other_than_vggt_needs_layers(tmp_path, dataset, capsys):
    from transformers import Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path / "dino")
    pixels = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "dino" / "preprocessor_config.json").write_text(json.dumps(pixels))
    command = ["cache", "build", str(dataset), "--teacher", str(tmp_path / "dino"), "--out", str(tmp_path / "out")]
    assert main([*command, "--device", "cpu", "--workers", "0"]) == 2
    assert "choose the layers of dino to store with --layers" in capsys.readouterr().err
    assert main([*command, "--device", "cpu", "--workers", "0", "--layers", "1,2"]) == 0


def test_embedded_teacher_is_cached_with_all_layers(tmp_path, dataset):
    command = ["cache", "build", str(dataset), "--teacher", "embedded", "--out", str(tmp_path / "out")]
    assert main([*command, "--device", "cpu", "--workers", "0"]) == 0
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.teacher, manifest.license, manifest.layers) == ("embedded", "apache-2.0", (1, 2, 3, 4))


# Several processes


def run_as_rank(rank: int, port: int, command: Sequence[str]) -> None:
    """Run the command as one of two ranks, with the environment variables that `accelerate launch --cpu` sets."""
    PartialState._reset_state()
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    sys.exit(main(list(command)))


def test_two_ranks_write_same_files_as_one_process(built, dataset, vggt, tmp_path):
    command = arguments(dataset, vggt, tmp_path / "out", "--storage", "int8")
    assert run_clean(2, run_as_rank, free_port(), command, seconds=60) == [0, 0]
    assert read_files(tmp_path / "out") == read_files(built)


@pytest.mark.slow
def test_accelerate_launch_writes_same_files(built, dataset, vggt, tmp_path):
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    command += ["--main_process_port", str(free_port()), "-m", "rocket_hf.commands"]
    command += arguments(dataset, vggt, tmp_path / "out", "--storage", "int8")
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished ") == 1
    assert read_files(tmp_path / "out") == read_files(built)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["rows"] == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 0}, "rows must be a positive integer, got 0"),
        ({"rows": -9}, "rows must be a positive integer, got -9"),
        ({"rows": "9"}, "rows must be a positive integer, got '9'"),
        ({"rows_per_shard": 0}, "rows_per_shard must be a positive integer, got 0"),
        ({"rows": 10**18, "rows_per_shard": 1}, "is incomplete, 999999999999999999 of 1000000000000000000 shards"),
        ({"grid": [0, 5]}, "grid must be two positive integers, got (0, 5)"),
        ({"storage": "pickle"}, "there is no storage 'pickle'"),
        ({"width": 10**6}, "numbers per token of 32 channels, are impossible"),
        ({"layers": [99]}, "layers must be in 1..4, got (99,)"),
        ({"cameras": []}, "cameras must be names, got ()"),
    ],
)
@pytest.mark.parametrize("action", ["verify", "info"])
def test_impossible_manifest_is_one_sentence(action, change, message, built, tmp_path, capsys):
    copy = shutil.copytree(built, tmp_path / "copy")
    values = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(values | change))
    capsys.readouterr()
    assert main(["cache", action, str(copy)]) == 2
    printed = capsys.readouterr().err
    assert message in printed or ("rows" in change and "of another cache" in printed and action == "info")
    assert "Traceback" not in printed


def test_verify_reads_the_projection(dataset, vggt, tmp_path, capsys):
    out = tmp_path / "projected"
    assert main(arguments(dataset, vggt, out, "--storage", "projected", "--width", "8")) == 0
    assert main(["cache", "verify", str(out)]) == 0
    projection = out / "projection.safetensors"
    content = bytearray(projection.read_bytes())
    content[-1] ^= 1
    projection.write_bytes(content)
    assert main(["cache", "verify", str(out)]) == 2
    assert f"{projection} is missing, or is not the file that this cache was built with" in capsys.readouterr().err
    projection.unlink()
    assert main(["cache", "verify", str(out)]) == 2


def test_verify_counts_missing_shards(built, tmp_path, capsys):
    copy = shutil.copytree(built, tmp_path / "copy")
    shard_path(copy, 0).unlink()
    assert main(["cache", "verify", str(copy)]) == 2
    assert "is incomplete, 1 of 1 shards are missing" in capsys.readouterr().err


def test_build_prints_time_and_disk_before_it_starts(dataset, vggt, tmp_path, capsys):
    assert main(arguments(dataset, vggt, tmp_path / "cache")) == 0
    lines = capsys.readouterr().out.splitlines()
    starts = [line.split()[0] for line in lines]
    assert starts.index("disk") < starts.index("time") < starts.index("finished")
    assert re.fullmatch(r"time       less than 1 min for 9 frames \(\d+ ms per frame\)", lines[starts.index("time")])


def test_resolution_is_suggested_if_a_build_takes_over_an_hour(built):
    manifest = replace(Manifest.load(built), input_size=(392, 518), rows=8 * 3600)
    batch = BatchSeconds(reading=0.5, computing=4.0)
    lines = format_estimate(batch, manifest, 14, manifest.rows, 8, workers=2, processes=2)
    assert lines == [
        "time       about 2 h 00 min for 28,800 frames (562 ms per frame)",
        "           --resolution 224 would take about 22 min: its images have 224 instead of 518 pixels on the longer "
        "side",
    ]
    assert len(format_estimate(batch, manifest, 14, manifest.rows // 2, 8, workers=2, processes=2)) == 1
    small = replace(manifest, input_size=(168, 224))
    assert len(format_estimate(batch, small, 14, manifest.rows, 8, workers=2, processes=2)) == 1


def test_estimate_is_close_to_the_measured_time(tmp_path):
    """The frames of this test take a known time to read and to compute."""
    batch = measure_batch(lambda: time.sleep(0.03), lambda: time.sleep(0.05), torch.device("cpu"))
    assert batch.reading == pytest.approx(0.03, abs=0.03) and batch.computing == pytest.approx(0.05, abs=0.03)
    assert BatchSeconds(0.03, 0.05).total(80, 8, workers=0, processes=1) == pytest.approx(0.8)
    assert BatchSeconds(0.3, 0.05).total(80, 8, workers=2, processes=1) == pytest.approx(1.5)
