"""Building a feature cache: whole files or none, the same ones however often it stopped and however many shared it."""

import multiprocessing
import resource
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from torch import Tensor
from tqdm import tqdm

from rocket_hf.teachers.cache_shards import shard_path
from rocket_hf.teachers.cache_writer import CacheWriter, plan_cache
from rocket_hf.teachers.feature_cache import FeatureCache
from rocket_hf.teachers.vggt import VggtTeacher

from .conftest import ROWS, DrawnFrames, build, files_of, planned, write

FORKS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def in_a_process(target, *arguments) -> multiprocessing.Process:
    """A fork, which has imported everything already."""
    if tqdm.monitor:  # a thread, which a fork must not interrupt
        tqdm.monitor.exit()
        tqdm.monitor = None
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def whole_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]


@FORKS
@pytest.mark.parametrize(("storage", "lives"), [("bf16", (3, 4, 4)), ("projected", (3, 8 + 4, 4))])
def test_kills_cost_nothing_that_was_finished_and_change_nothing(caches, teacher, tmp_path, storage, lives):
    """A shard is two batches, and the projection, which the first kill interrupts, eight. A shard is written while the
    next one is computed, so at least the first of two is there."""
    folder, plan = tmp_path / "cache", planned(teacher, storage=storage, width=16)
    finished: dict[Path, tuple[int, int]] = {}
    for batches in lives:
        process = in_a_process(write, folder, plan, DrawnFrames(batches_to_live=batches), teacher)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        now = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in whole_files(folder)}
        assert finished.items() <= now.items()
        finished = now
        with pytest.raises(ValueError, match=r"is unfinished, .* of 6 shards are missing|it has no manifest.json"):
            FeatureCache(folder)
    assert {shard_path(folder, 0), shard_path(folder, 1)} <= finished.keys()
    (folder / "shards" / ".00005.safetensors.123.tmp").write_bytes(b"half")
    write(folder, plan, DrawnFrames(), teacher)
    assert all((path.stat().st_ino, path.stat().st_mtime_ns) == was for path, was in finished.items())
    assert files_of(folder) == files_of(caches[storage])


@FORKS
def test_two_processes_write_the_files_that_one_writes(caches, teacher, tmp_path):
    plan = planned(teacher, storage="int8")
    processes = [in_a_process(write, tmp_path, plan, DrawnFrames(), teacher, rank, 2) for rank in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert files_of(tmp_path) == files_of(caches["int8"])


def test_a_finished_cache_is_left_as_it_is(caches, teacher):
    before = {path: path.stat().st_mtime_ns for path in caches["int8"].rglob("*")}
    build(caches["int8"], teacher, storage="int8")
    assert before == {path: path.stat().st_mtime_ns for path in caches["int8"].rglob("*")}


def test_it_says_what_it_needs_and_refuses_a_full_disk(teacher, tmp_path):
    plan, said = planned(teacher), []
    writer = CacheWriter(tmp_path / "new", plan, DrawnFrames(), teacher)
    needed = plan.row_bytes * ROWS
    with pytest.raises(ValueError, match=r"needs 3.1 kB a frame, 68.6 kB for 22 frames, and .* has 67.6 kB free"):
        writer.prepare(free_bytes=needed - 1000, report=said.append)
    assert not (tmp_path / "new").exists()
    writer.prepare(free_bytes=needed, report=said.append)
    writer.write()
    CacheWriter(tmp_path / "new", plan, DrawnFrames(), teacher).prepare(free_bytes=0, report=said.append)
    assert "0 bytes for 0 frames" in said[-1]
    written = sum(path.stat().st_size for path in (tmp_path / "new" / "shards").iterdir())
    assert needed <= written <= needed + 6 * 1000  # and the headers of six shards


def test_a_disk_that_fills_up_is_named_and_leaves_whole_files(caches, teacher, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = shard_path(caches["int8"], 0).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"00000.safetensors cannot be written: File too large"):
            build(tmp_path / "cache", teacher, storage="int8")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "cache" / "shards").iterdir()] == []
    build(tmp_path / "cache", teacher, storage="int8")
    assert files_of(tmp_path / "cache") == files_of(caches["int8"])


class TornFrames(DrawnFrames):
    def pictures(self, indices: Sequence[int]) -> list[Tensor]:
        if 7 in indices:
            raise ValueError("the video is torn")
        return super().pictures(indices)


def test_pictures_that_cannot_be_read_are_said_as_the_reader_said_it(teacher, tmp_path):
    with pytest.raises(ValueError, match=r"^the video is torn$"):
        build(tmp_path, teacher, TornFrames())
    assert shard_path(tmp_path, 0).exists()


def test_features_that_are_not_finite_are_not_stored(teacher, tmp_path):
    broken = VggtTeacher(teacher.module, teacher.card)
    broken.pixels = lambda images: teacher.pixels(images) / 0
    with pytest.raises(ValueError, match="not finite, or too large to store, at layer 1 for one of the frames 0 to 2"):
        build(tmp_path / "cache", broken)
    with pytest.raises(ValueError, match="not finite at layer 1"):
        build(tmp_path / "projected", broken, storage="projected", width=8)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"layers": (1, 5)}, "layer 5 does not exist"),
        ({"layers": (4, -1)}, "name each layer of tiny once"),
        ({"layers": ()}, "at least one"),
        ({"layers": (1,), "storage": "projected", "width": 33}, r"width must lie in 1\.\.32"),
    ],
)
def test_what_the_teacher_does_not_have_is_refused(teacher, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        plan_cache(DrawnFrames(), teacher, **settings)


def test_a_folder_of_something_else_is_left_alone(teacher, caches, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty and no feature cache"):
        build(tmp_path, teacher)
    with pytest.raises(ValueError, match="another cache, with dataset you/robot instead of you/other"):
        build(caches["bf16"], teacher, DrawnFrames(dataset="you/other"))
    with pytest.raises(ValueError, match="storage bf16 instead of int8"):
        build(caches["bf16"], teacher, storage="int8")
