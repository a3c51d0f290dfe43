"""The benchmark of the teacher compares what it says it does, and reports it under the names that it promises."""

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


def test_each_way_is_what_it_says(small):
    found = {way: teacher.make_job(way)() for way in teacher.WAYS}
    grids = {way: features.grid for way, features in found.items()}
    assert grids == {"full": (6, 6), "chosen": (6, 6), "half_depth": (6, 6), "native": (2, 2), "cache": (2, 2)}
    for way in ("chosen", "half_depth"):
        for layer, maps in found[way].maps.items():
            torch.testing.assert_close(maps, found["full"].maps[layer])
    for layer, maps in found["native"].maps.items():
        torch.testing.assert_close(found["cache"].maps[layer], maps, atol=1e-2, rtol=1e-2)  # bfloat16


def test_the_figures_and_their_report(small, monkeypatch):
    monkeypatch.setattr(teacher, "peak_memory", lambda make_job, way: 2**20)  # of processes of full size
    figures = teacher.measure()
    assert {"native_to_full", "half_depth_to_full", "cache_to_full"} <= figures.keys()
    assert json.loads(json.dumps(figures)) == figures
    assert f"{figures['native_to_full']:.4f}" in teacher.report(figures)
