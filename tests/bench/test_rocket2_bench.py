"""Benchmark of ROCKET-2's memory, with the results that must hold."""

import json

import pytest

from rocket_hf.bench import rocket2
from rocket_hf.modeling.configuration_rocket2 import Rocket2Config


def test_results_and_report_of_the_rocket2_benchmark(monkeypatch):
    values = {key: getattr(rocket2.SMALL, key) for key in Rocket2Config.declared_keys()}
    small = Rocket2Config(**values | {"window_steps": 6, "rgb_depth": 1, "spatial_layers": 1})
    for name, value in {"SMALL": small, "LATE": 30, "ROUNDS": 1}.items():
        monkeypatch.setattr(rocket2, name, value)
    figures = rocket2.measure()
    assert json.loads(json.dumps(figures)) == figures
    assert figures["memory_speedup"] > 0
    assert figures["state_mib"]["step_10"] == figures["state_mib"]["step_30"] > 0
    assert "step 30" in rocket2.report(figures)


@pytest.mark.slow
def test_memory_speeds_up_steps_and_late_steps_are_not_slower():
    figures = rocket2.measure()
    assert figures["memory_speedup"] >= 20
    assert figures["step_1000_to_step_10"] < 1.5
