"""The benchmarks of choosing layers and of measuring agreement, and what they have to find."""

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
def test_memory_is_that_of_one_batch(few_layers, strategy):
    few, many = layers.peaks_of(strategy)
    assert many < few + 2**24  # the features of the batches between are 51 MiB, the table of a batch is 8
    assert layers.seconds_of(strategy) > 0


@pytest.mark.slow
def test_memory_is_the_same_for_sixteen_times_the_samples():
    figures = layers.measure()
    assert json.loads(json.dumps(figures)) == figures
    for strategy, row in figures.items():
        assert row["mib_many"] < row["mib_few"] + 100, strategy  # all features are 14 GiB
        assert str(row["mib_many"]) in layers.report(figures)


def test_the_share_of_a_run_is_reported(small):  # noqa: F811
    AcceleratorState._reset_state(True)
    figures = agreement.measure()
    assert json.loads(json.dumps(figures)) == figures
    for way in agreement.WAYS:
        row = figures[way]
        assert row["share"] == pytest.approx(row["steps"] / 100, abs=1e-4) and row["steps"] > 0
        assert f"{row['share']:.2%}" in agreement.report(figures)
    assert torch.get_num_threads() == 1
