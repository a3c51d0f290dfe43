"""The benchmark of ROCKET-2's memory, and what it has to find."""

import json

import pytest

from rocket_hf.bench import rocket2
from rocket_hf.modeling.configuration_rocket2 import Rocket2Config


def test_figures_are_one_json_object(monkeypatch):
    own = {key: getattr(rocket2.SMALL, key) for key in Rocket2Config.declared()}
    small = Rocket2Config(**own | {"window_steps": 6, "rgb_depth": 1, "spatial_layers": 1})
    for name, value in {"SMALL": small, "LATE": 30, "ROUNDS": 1}.items():
        monkeypatch.setattr(rocket2, name, value)
    figures = rocket2.measure()
    assert json.loads(json.dumps(figures)) == figures
    assert figures["memory_speedup"] > 0
    assert figures["state_mib"]["step_10"] == figures["state_mib"]["step_30"] > 0
    assert "step 30" in rocket2.report(figures)


@pytest.mark.slow
def test_the_memory_saves_a_lot_and_steps_never_cost_more():
    figures = rocket2.measure()
    assert figures["memory_speedup"] >= 20
    assert figures["step_1000_to_step_10"] < 1.5
