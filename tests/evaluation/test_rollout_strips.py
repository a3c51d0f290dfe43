"""Strips of the first successful and the first failed episode."""

import numpy as np
import pytest
from PIL import Image

from rocket_hf.evaluation.policy_runner import PolicyRunner
from rocket_hf.evaluation.rollout_strips import (
    FILES,
    FRAMES,
    GAP,
    KEPT_FRAMES,
    MAX_BYTES,
    RolloutStrips,
    SampledFrames,
    join_frames,
    write_compact_png,
)

from .point_environment import SIZE, PointEnvironment
from .test_rollouts import STARTS, ExpertRunner, run_points

TASKS = ("near", "nearer")


def first_start(results, success):
    """Return the first start with this outcome in the order of a report: by task, then by seed."""
    starts = [start for start, result in results.items() if result.success == success]
    return min(starts, key=lambda start: (TASKS.index(start.task), start.seed))


@pytest.mark.parametrize(("parallel", "processes"), [(1, 0), (4, 0), (16, 2)])
def test_first_success_and_first_failure_are_kept_for_any_parallelism(parallel, processes, tiny_pi0):
    strips = RolloutStrips(TASKS)
    results = run_points(PolicyRunner(*tiny_pi0), parallel, processes=processes, strips=strips)
    assert results == run_points(PolicyRunner(*tiny_pi0)), "strips change no result"
    assert not strips.running
    for success, (start, frames) in strips.ended.items():
        assert start == first_start(results, success)
        environment = PointEnvironment(start.task)
        environment.reset(start.seed)
        chosen = frames.pick(FRAMES)
        np.testing.assert_array_equal(chosen[0], environment.observe().images["front"])
        assert len(chosen) == min(FRAMES, 1 + -(-results[start].steps // 4)), "the first, one per chunk, and the end"
    assert set(strips.ended) == {True, False}


def test_strips_are_written_and_those_of_an_earlier_evaluation_removed(tiny_pi0, tmp_path):
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / FILES[False]).touch()
    strips = RolloutStrips(TASKS)
    run_points(ExpertRunner(*tiny_pi0), starts=STARTS[:2], strips=strips)
    strips.write(tmp_path / "rollouts")
    assert [path.name for path in (tmp_path / "rollouts").iterdir()] == ["success.png"]
    with Image.open(tmp_path / "rollouts" / "success.png") as image:
        frames = len(strips.ended[True][1].pick(FRAMES))
        assert image.size == (frames * (SIZE + GAP) - GAP, SIZE)


@pytest.mark.parametrize("length", [1, 2, 5, 30, 1000])
def test_sampled_frames_are_few_evenly_spaced_and_include_both_ends(length):
    frames = SampledFrames()
    for number in range(length):
        frames.add(np.full((2, 2, 3), number))
        assert len(frames.frames) <= KEPT_FRAMES
    chosen = [int(frame[0, 0, 0]) for frame in frames.pick(FRAMES)]
    assert chosen[0] == 0 and chosen[-1] == length - 1 and len(chosen) == min(FRAMES, length)
    if length >= 30:
        assert max(np.diff(chosen)) <= 2 * length / FRAMES


def test_image_of_noise_fits_the_size_limit(tmp_path):
    """Noise is the worst case for compression."""
    noise = np.random.default_rng(0).integers(0, 256, (FRAMES, 256, 256, 3), dtype=np.uint8)
    write_compact_png(tmp_path / "noise.png", join_frames(noise))
    assert 10_000 < (tmp_path / "noise.png").stat().st_size <= MAX_BYTES
    with Image.open(tmp_path / "noise.png") as image:
        assert image.height in (128, 96, 64)
