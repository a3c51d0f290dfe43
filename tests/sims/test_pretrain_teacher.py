"""`rocket-hf pretrain-teacher` on recorded demonstrations: what it leaves and prints, and what it refuses."""

import contextlib
import io
import json

import pytest
import torch

from rocket_hf.commands import main
from rocket_hf.sims.metaworld_tasks import INSTRUCTIONS
from rocket_hf.sims.rgbd import RgbdFrames
from rocket_hf.teachers.load import load_teacher
from rocket_hf.teachers.pretraining.scenes import read_scenes
from rocket_hf.tiny_dataset import write_tiny_dataset

KNOWN, UNSEEN = INSTRUCTIONS["handle-press-v3"], INSTRUCTIONS["reach-v3"]
SHORT = ["--steps", "2", "--batch-size", "2", "--every", "20"]


@pytest.fixture(scope="module")
def made(recorded, tmp_path_factory):
    """The folder, and what was printed."""
    folder = tmp_path_factory.mktemp("made") / "teacher"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = main(["pretrain-teacher", str(recorded[0]), "--held-out", UNSEEN, *SHORT, "--out", str(folder)])
    assert code == 0
    return folder, printed.getvalue().splitlines()


def test_it_leaves_a_teacher_and_its_report(made):
    folder, lines = made
    teacher, report = load_teacher(str(folder)), json.loads((folder / "report.json").read_text())
    assert (teacher.card.name, teacher.card.license, teacher.card.image_size) == ("teacher", "apache-2.0", 32)
    assert (report["data"]["tasks"], report["data"]["held_out_tasks"]) == ([KNOWN], [UNSEEN])
    assert report["data"]["cameras"] == ["corner2", "gripperPOV"]
    mean = report["depth"]["all cameras together"]["mean"]
    assert f"depth       {mean:.3f} relative error: all cameras together" in lines
    assert sorted(path.name for path in folder.parent.iterdir()) == ["teacher"]  # no temporary folder


def test_its_card_tells_the_commands_that_make_it_again(made, recorded):
    folder, _ = made
    simulate = "rocket-hf simulate metaworld --tasks handle-press-v3 reach-v3 --episodes 2 --image-size 32 --seed 0"
    assert f"    {simulate} --depth --out {recorded[0].name}\n" in (folder / "README.md").read_text()
    words = f"rocket-hf pretrain-teacher {recorded[0].name} --held-out '{UNSEEN}' --steps 2 --batch-size 2 --every 20"
    assert f"    {words} --seed 0 --out teacher\n" in (folder / "README.md").read_text()


def test_scenes_are_every_so_manieth_frame(recorded):
    frames = RgbdFrames(recorded[0])
    scenes = read_scenes(frames, every=20)
    assert len(scenes) == len(range(0, len(frames), 20))
    third = frames[40]
    assert torch.equal(scenes.images[2], third.images) and scenes.tasks[2] == third.task
    torch.testing.assert_close(scenes.depth[2].float(), third.depth, rtol=1e-3, atol=0)
    focal = third.intrinsics[:, 0, 0]
    torch.testing.assert_close((scenes.angles[2] / 2).tan() * focal, torch.full((2,), 16.0))


def refused(capsys, dataset, held_out, out) -> str:
    assert main(["pretrain-teacher", str(dataset), "--held-out", held_out, *SHORT, "--out", str(out)]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    return said


def test_a_task_that_is_not_there(recorded, tmp_path, capsys):
    said = refused(capsys, recorded[0], UNSEEN[:-2], tmp_path / "out")
    assert f"no task {UNSEEN[:-2]!r} to hold out: did you mean {UNSEEN!r}" in said
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_not_overwritten(recorded, tmp_path, capsys):
    (tmp_path / "notes").write_text("mine")
    assert "exists and is not empty" in refused(capsys, recorded[0], UNSEEN, tmp_path)


def test_a_dataset_without_depth(tmp_path, capsys):
    write_tiny_dataset(tmp_path / "data")
    said = refused(capsys, tmp_path / "data", UNSEEN, tmp_path / "out")
    assert "holds no depth: record it with `rocket-hf simulate ... --depth`" in said
