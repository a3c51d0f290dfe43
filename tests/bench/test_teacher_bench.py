"""Benchmark of teacher features: equal features in comparable modes, and its result keys."""

import json

import pytest
import torch

from rocket_hf.bench import teacher


@pytest.fixture
def small(monkeypatch):
    for name, value in {"WIDTH": 32, "TEACHER_SIZE": 84, "CAMERA_SIZE": 28}.items():
        monkeypatch.setattr(teacher, name, value)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_modes_compute_comparable_features(small):
    features_by_mode = {mode: teacher.create_teacher_job(mode)() for mode in teacher.MODES}
    grids = {mode: features.grid for mode, features in features_by_mode.items()}
    assert grids == {"full": (6, 6), "chosen": (6, 6), "half_depth": (6, 6), "native": (2, 2), "cache": (2, 2)}
    for mode in ("chosen", "half_depth"):
        for layer, maps in features_by_mode[mode].maps.items():
            torch.testing.assert_close(maps, features_by_mode["full"].maps[layer])
    for layer, maps in features_by_mode["native"].maps.items():
        torch.testing.assert_close(features_by_mode["cache"].maps[layer], maps, atol=1e-2, rtol=1e-2)  # bfloat16


def test_results_and_report_of_the_teacher_benchmark(small, monkeypatch):
    monkeypatch.setattr(teacher, "peak_memory", lambda create_teacher_job, mode: 2**20)  # full-size models
    figures = teacher.measure()
    assert {"native_to_full", "half_depth_to_full", "cache_to_full"} <= figures.keys()
    assert json.loads(json.dumps(figures)) == figures
    assert f"{figures['native_to_full']:.4f}" in teacher.report(figures)
