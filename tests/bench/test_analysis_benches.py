"""Benchmarks of layer selection and of gradient agreement, with the results that must hold."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState

from rocket_hf.bench import agreement, layers

from .test_step_bench import small  # noqa: F401  (a fixture)


@pytest.fixture
def few_layers(monkeypatch):
    for name, value in {"DEPTHS": (8, 8), "WIDTHS": (64, 64), "BATCH": 2, "SAMPLES": (32, 128)}.items():
        monkeypatch.setattr(layers, name, value)


@pytest.mark.parametrize("strategy", layers.STRATEGIES)
def test_layer_selection_memory_does_not_exceed_one_batch(few_layers, strategy):
    few, many = layers.measure_peak_memory(strategy)
    assert many < few + 2**24  # all features between have 51 MiB, the table of a batch has 8 MiB
    assert layers.seconds_per_batch(strategy) > 0


@pytest.mark.slow
def test_layer_selection_memory_does_not_grow_with_the_samples():
    figures = layers.measure()
    assert json.loads(json.dumps(figures)) == figures
    for strategy, row in figures.items():
        assert row["mib_many"] < row["mib_few"] + 100, strategy  # all features have 14 GiB
        assert str(row["mib_many"]) in layers.report(figures)


def test_agreement_benchmark_reports_the_share_of_training_time(small):  # noqa: F811
    AcceleratorState._reset_state(True)
    figures = agreement.measure()
    assert json.loads(json.dumps(figures)) == figures
    for mode in agreement.MODES:
        row = figures[mode]
        assert row["share"] == pytest.approx(row["steps"] / 100, abs=1e-4) and row["steps"] > 0
        assert f"{row['share']:.2%}" in agreement.report(figures)
    assert torch.get_num_threads() == 1
