"""Building a feature cache: files are complete or absent, and independent of interruptions and process counts."""

import multiprocessing
import resource
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from torch import Tensor
from tqdm import tqdm

from rocket_hf.errors import UserError
from rocket_hf.teachers.cache_shards import shard_path
from rocket_hf.teachers.cache_writer import CacheWriter, plan_cache
from rocket_hf.teachers.feature_cache import FeatureCache
from rocket_hf.teachers.vggt import VggtTeacher

from .conftest import ROWS, RandomFrames, build_cache, plan_small_shards, read_files, write_cache

ALLOW_FORK = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def start_process(target, *arguments) -> multiprocessing.Process:
    """Fork a process, so that it need not import everything again."""
    if tqdm.monitor:  # a fork while this thread runs could deadlock
        tqdm.monitor.exit()
        tqdm.monitor = None
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def visible_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]


@ALLOW_FORK
@pytest.mark.parametrize(("storage", "batches_until_kill"), [("bf16", (3, 4, 4)), ("projected", (3, 8 + 4, 4))])
def test_killed_build_keeps_finished_shards_and_resumes_to_identical_files(
    caches, teacher, tmp_path, storage, batches_until_kill
):
    """A shard has two batches. The projection, which the first kill interrupts, has eight. A shard is written while the
    next one is computed, so at least the first of two exists."""
    folder, plan = tmp_path / "cache", plan_small_shards(teacher, storage=storage, width=16)
    finished: dict[Path, tuple[int, int]] = {}
    for batches in batches_until_kill:
        process = start_process(write_cache, folder, plan, RandomFrames(batches_until_kill=batches), teacher)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        now = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in visible_files(folder)}
        assert finished.items() <= now.items()
        finished = now
        with pytest.raises(UserError, match=r"is incomplete, .* of 6 shards are missing|it has no manifest.json"):
            FeatureCache(folder)
    assert {shard_path(folder, 0), shard_path(folder, 1)} <= finished.keys()
    (folder / "shards" / ".00005.safetensors.123.tmp").write_bytes(b"partial")
    write_cache(folder, plan, RandomFrames(), teacher)
    assert all((path.stat().st_ino, path.stat().st_mtime_ns) == was for path, was in finished.items())
    assert read_files(folder) == read_files(caches[storage])


@ALLOW_FORK
def test_two_processes_write_same_files_as_one(caches, teacher, tmp_path):
    plan = plan_small_shards(teacher, storage="int8")
    processes = [start_process(write_cache, tmp_path, plan, RandomFrames(), teacher, rank, 2) for rank in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert read_files(tmp_path) == read_files(caches["int8"])


def test_building_a_finished_cache_again_changes_no_file(caches, teacher):
    before = {path: path.stat().st_mtime_ns for path in caches["int8"].rglob("*")}
    build_cache(caches["int8"], teacher, storage="int8")
    assert before == {path: path.stat().st_mtime_ns for path in caches["int8"].rglob("*")}


def test_needed_space_is_reported_and_full_disk_raises(teacher, tmp_path):
    plan, reported = plan_small_shards(teacher), []
    writer = CacheWriter(tmp_path / "new", plan, RandomFrames(), teacher)
    needed = plan.row_bytes * ROWS
    with pytest.raises(UserError, match=r"needs 3.1 kB per frame, 68.6 kB for 22 frames, and .* has 67.6 kB free"):
        writer.prepare(free_bytes=needed - 1000, report=reported.append)
    assert not (tmp_path / "new").exists()
    writer.prepare(free_bytes=needed, report=reported.append)
    writer.write()
    CacheWriter(tmp_path / "new", plan, RandomFrames(), teacher).prepare(free_bytes=0, report=reported.append)
    assert "0 bytes for 0 frames" in reported[-1]
    written = sum(path.stat().st_size for path in (tmp_path / "new" / "shards").iterdir())
    assert needed <= written <= needed + 6 * 1000  # the six shards have headers of less than 1000 bytes


def test_disk_that_fills_up_raises_with_path_and_leaves_no_partial_file(caches, teacher, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = shard_path(caches["int8"], 0).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, limits[1]))
    try:
        with pytest.raises(UserError, match=r"00000.safetensors cannot be written: File too large"):
            build_cache(tmp_path / "cache", teacher, storage="int8")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "cache" / "shards").iterdir()] == []
    build_cache(tmp_path / "cache", teacher, storage="int8")
    assert read_files(tmp_path / "cache") == read_files(caches["int8"])


class UnreadableFrames(RandomFrames):
    def read_images(self, indices: Sequence[int]) -> list[Tensor]:
        if 7 in indices:
            raise ValueError("the video is damaged")
        return super().read_images(indices)


def test_reader_error_keeps_its_message(teacher, tmp_path):
    with pytest.raises(ValueError, match=r"^the video is damaged$"):
        build_cache(tmp_path, teacher, UnreadableFrames())
    assert shard_path(tmp_path, 0).exists()


def test_non_finite_features_are_not_stored(teacher, tmp_path):
    broken = VggtTeacher(teacher.module, teacher.card)
    broken.normalize = lambda images: teacher.normalize(images) / 0
    with pytest.raises(UserError, match="not finite, or too large to store, at layer 1 for one of the frames 0 to 2"):
        build_cache(tmp_path / "cache", broken)
    with pytest.raises(UserError, match="non-finite features at layer 1"):
        build_cache(tmp_path / "projected", broken, storage="projected", width=8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": (1, 5)}, "tiny has no layer 5"),
        ({"layers": (4, -1)}, "layer of tiny, and each layer once"),
        ({"layers": ()}, "name at least one layer"),
        ({"layers": (1,), "storage": "projected", "width": 33}, r"width of projected features must be in 1\.\.32"),
    ],
)
def test_plan_with_unknown_layers_or_width_raises(teacher, settings, message):
    with pytest.raises(UserError, match=message):
        plan_cache(RandomFrames(), teacher, **settings)


def test_folder_with_other_content_raises(teacher, caches, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and is not a feature cache"):
        build_cache(tmp_path, teacher)
    with pytest.raises(UserError, match="another cache, with dataset you/robot instead of you/other"):
        build_cache(caches["bf16"], teacher, RandomFrames(dataset="you/other"))
    with pytest.raises(UserError, match="storage bf16 instead of int8"):
        build_cache(caches["bf16"], teacher, storage="int8")
