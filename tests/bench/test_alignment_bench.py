"""The benchmark compares two ways to the same numbers, and reports them under the names that it promises."""

import json
import subprocess
import sys

import pytest
import torch

from rocket_hf.bench import alignment
from rocket_hf.bench.measure import median_ratio, peak_memory


@pytest.fixture
def small(monkeypatch):
    for name, value in {"STREAM_WIDTH": 24, "TARGET_WIDTH": 16, "GRID": (4, 4), "TEACHER_GRID": (9, 9)}.items():
        monkeypatch.setattr(alignment, name, value)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_both_ways_give_the_same_loss(small):
    plain, ours = alignment.make_job("plain")(), alignment.make_job("nested")()
    torch.testing.assert_close(plain, ours)


def test_the_figures_and_their_report(small, monkeypatch):
    monkeypatch.setattr(alignment, "peak_memory", lambda make_job, way: 2**20)  # of processes of full size
    figures = alignment.measure()
    assert {"cpu_ratio_to_plain", "nested_to_full", "peak_memory_ratio"} <= figures.keys()
    assert json.loads(json.dumps(figures)) == figures
    assert f"{figures['cpu_ratio_to_plain']:.3f}" in alignment.report(figures)


def allocate(mebibytes: int):
    return lambda: torch.ones(mebibytes * 2**18).sum()


def test_peak_memory_is_what_the_job_allocates():
    assert peak_memory(allocate, 64) == pytest.approx(64 * 2**20, rel=0.2)


def test_the_median_is_of_the_ratios():
    assert median_ratio([1, 2, 30], [1, 1, 10]) == 2


def test_an_unknown_benchmark_is_refused():
    done = subprocess.run([sys.executable, "-m", "rocket_hf.bench", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "invalid choice: 'nothing'" in done.stderr
