"""Benchmark of the alignment head: equal losses of both implementations, result keys, and measurement helpers."""

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


def test_plain_and_nested_modes_have_the_same_loss(small):
    plain, ours = alignment.create_alignment_job("plain")(), alignment.create_alignment_job("nested")()
    torch.testing.assert_close(plain, ours)


def test_results_and_report_of_the_alignment_benchmark(small, monkeypatch):
    monkeypatch.setattr(alignment, "peak_memory", lambda create_alignment_job, mode: 2**20)  # full-size models
    figures = alignment.measure()
    assert {"cpu_ratio_to_plain", "nested_to_full", "peak_memory_ratio"} <= figures.keys()
    assert json.loads(json.dumps(figures)) == figures
    assert f"{figures['cpu_ratio_to_plain']:.3f}" in alignment.report(figures)


def allocate(mebibytes: int):
    return lambda: torch.ones(mebibytes * 2**18).sum()


def test_peak_memory_equals_what_the_job_allocates():
    assert peak_memory(allocate, 64) == pytest.approx(64 * 2**20, rel=0.2)


def test_median_ratio_is_the_median_over_rounds():
    assert median_ratio([1, 2, 30], [1, 1, 10]) == 2


def test_unknown_benchmark_is_rejected():
    done = subprocess.run([sys.executable, "-m", "rocket_hf.bench", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "invalid choice: 'nothing'" in done.stderr
