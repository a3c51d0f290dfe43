"""Benchmark of the data loader: it asserts equal tensors and reports ratios."""

import json

import pytest

from rocket_hf.bench import data


@pytest.mark.needs_lerobot
def test_data_benchmark_is_faster_than_lerobot_with_equal_tensors(monkeypatch):
    for name, small in {"EPISODES": 1, "FRAMES": 12, "SAMPLES": 4}.items():
        monkeypatch.setattr(data, name, small)
    figures = json.loads(json.dumps(data.measure(rounds=1)))
    assert figures["png_chunk50_to_lerobot"] > 5
    assert figures["video_chunk50_to_lerobot"] > 1
    assert "PNG in tables" in data.report(figures)
