"""`rocket-hf pretrain-teacher` on recorded demonstrations: output folder, printed report and error messages."""

import contextlib
import io
import json

import pytest
import torch

from rocket_hf.commands import main
from rocket_hf.rgbd_dataset import RgbdFrames
from rocket_hf.sims.metaworld_tasks import INSTRUCTIONS
from rocket_hf.teachers.load import load_teacher
from rocket_hf.teachers.pretraining.scenes import read_scenes
from rocket_hf.tiny_dataset import write_tiny_dataset

TRAINED, HELD_OUT = INSTRUCTIONS["handle-press-v3"], INSTRUCTIONS["reach-v3"]
SHORT = ["--steps", "2", "--batch-size", "2", "--every", "20"]


@pytest.fixture(scope="module")
def pretrained(recorded, tmp_path_factory):
    """Folder of a teacher, and the lines that the command printed."""
    folder = tmp_path_factory.mktemp("pretrained") / "teacher"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = main(["pretrain-teacher", str(recorded[0]), "--held-out", HELD_OUT, *SHORT, "--out", str(folder)])
    assert code == 0
    return folder, printed.getvalue().splitlines()


def test_command_writes_teacher_and_report(pretrained):
    folder, lines = pretrained
    teacher, report = load_teacher(str(folder)), json.loads((folder / "report.json").read_text())
    assert (teacher.card.name, teacher.card.license, teacher.card.image_size) == ("teacher", "apache-2.0", 32)
    assert (report["data"]["tasks"], report["data"]["held_out_tasks"]) == ([TRAINED], [HELD_OUT])
    assert report["data"]["cameras"] == ["corner2", "gripperPOV"]
    mean = report["depth"]["all cameras together"]["mean"]
    assert f"depth       {mean:.3f} relative error: all cameras together" in lines
    assert sorted(path.name for path in folder.parent.iterdir()) == ["teacher"]  # no temporary folder remains


def test_card_contains_commands_that_reproduce_teacher(pretrained, recorded):
    folder, _ = pretrained
    simulate = "rocket-hf simulate metaworld --tasks handle-press-v3 reach-v3 --episodes 2 --image-size 32 --seed 0"
    assert f"    {simulate} --depth --out {recorded[0].name}\n" in (folder / "README.md").read_text()
    words = f"rocket-hf pretrain-teacher {recorded[0].name} --held-out '{HELD_OUT}' --steps 2 --batch-size 2 --every 20"
    assert f"    {words} --seed 0 --out teacher\n" in (folder / "README.md").read_text()


def test_scenes_are_frames_at_given_stride(recorded):
    frames = RgbdFrames(recorded[0])
    scenes = read_scenes(frames, stride=20)
    assert len(scenes) == len(range(0, len(frames), 20))
    third = frames[40]
    assert torch.equal(scenes.images[2], third.images) and scenes.tasks[2] == third.task
    torch.testing.assert_close(scenes.depth[2].float(), third.depth, rtol=1e-3, atol=0)
    focal = third.intrinsics[:, 0, 0]
    torch.testing.assert_close((scenes.angles[2] / 2).tan() * focal, torch.full((2,), 16.0))


def run_and_read_error(capsys, dataset, held_out, out) -> str:
    assert main(["pretrain-teacher", str(dataset), "--held-out", held_out, *SHORT, "--out", str(out)]) == 2
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1
    return message


def test_unknown_held_out_task_fails(recorded, tmp_path, capsys):
    message = run_and_read_error(capsys, recorded[0], HELD_OUT[:-2], tmp_path / "out")
    assert f"no task {HELD_OUT[:-2]!r} to hold out: did you mean {HELD_OUT!r}" in message
    assert not list(tmp_path.iterdir())


def test_existing_folder_is_not_overwritten(recorded, tmp_path, capsys):
    (tmp_path / "notes").write_text("mine")
    assert "exists and is not empty" in run_and_read_error(capsys, recorded[0], HELD_OUT, tmp_path)


def test_dataset_without_depth_fails(tmp_path, capsys):
    write_tiny_dataset(tmp_path / "data")
    message = run_and_read_error(capsys, tmp_path / "data", HELD_OUT, tmp_path / "out")
    assert "contains no depth: record it with `rocket-hf simulate ... --depth`" in message
