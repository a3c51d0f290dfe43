"""Benchmark of a training step: real steps in the modes plain, cached and live, and its result keys."""

import dataclasses
import json

import pytest
import torch
from accelerate.state import AcceleratorState

from rocket_hf.bench import step
from rocket_hf.modeling.configuration_openvla import OpenVLAPolicyConfig
from rocket_hf.modeling.configuration_pi0 import Pi0Config
from rocket_hf.teachers.vggt import VggtConfig
from rocket_hf.tiny import OPENVLA_SIZES, PI0_SIZES
from rocket_hf.training.recipe import PartsConfig


@pytest.fixture
def small(monkeypatch):
    setting = step.StepSetting(
        policy=Pi0Config(**(PI0_SIZES | {"vocab_size": 128})),
        teacher=VggtConfig(
            img_size=28, embed_dim=16, depth=4, num_heads=2, patch_embed_depth=1, patch_embed_heads=2
        ),
        chunk_size=4,
        student_layers=(1, 2, -1),
        teacher_layers=(2, 3, 4),
        parts=PartsConfig("full", "full", "full", "full"),
        batch_size=2,
        rounds=1,
        dtype=torch.float32,
    )  # fmt: skip
    AcceleratorState._reset_state(True)  # reset the state of earlier tests
    monkeypatch.setitem(step.STEP_SETTINGS, "25m", setting)
    monkeypatch.setattr(step, "PAIRS", (1, 2))
    monkeypatch.setattr(step, "CAMERA_SIZE", 28)
    threads = torch.get_num_threads()
    yield setting
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(True)


def test_openvla_setting_trains_at_a_tiny_size(small, tmp_path):
    """OpenVLA-OFT is trained with LoRA, with policy and teacher in bfloat16."""
    policy = OpenVLAPolicyConfig(variant="oft", **OPENVLA_SIZES)
    parts = step.OPENVLA.parts
    changed = dataclasses.replace(small, policy=policy, parts=parts, dtype=torch.bfloat16, chunk_size=2)
    benchmark = step.StepBenchmark(changed, tmp_path / "cache")
    for mode in ("plain", "cached", "live"):
        state = benchmark.create_state(mode, 3)
        head = state.policy.policy.action_head.fc_out.weight
        before = head.detach().clone()
        benchmark.create_step_job(state)()
        assert head.dtype == torch.float32 and not torch.equal(before, head)
        assert state.policy.policy.embed_tokens.weight.dtype == torch.bfloat16


def test_results_and_report_of_the_step_benchmark(small):
    figures = step.measure()
    assert {"cached_to_plain", "live_to_plain", "by_pairs"} <= figures.keys()
    assert figures["by_pairs"].keys() == {"1", "2"}
    assert json.loads(json.dumps(figures)) == figures
    assert f"{figures['cached_to_plain']:.3f}" in step.report(figures)


def test_cached_and_live_steps_update_weights_equally(small, tmp_path):
    """Cached and live steps differ only by the rounding of the cache to bfloat16; a plain step has no alignment."""
    benchmark = step.StepBenchmark(small, tmp_path / "cache")
    after = {}
    for mode in ("plain", "cached", "live"):
        state = benchmark.create_state(mode, 3)
        before = state.policy.policy.layers[0].language.mlp.up_proj.weight.detach().clone()
        torch.manual_seed(1)
        benchmark.create_step_job(state)()
        after[mode] = state.policy.policy.layers[0].language.mlp.up_proj.weight.detach()
        assert not torch.equal(before, after[mode])
    torch.testing.assert_close(after["cached"], after["live"], atol=1e-6, rtol=1e-3)
    assert not torch.equal(after["cached"], after["plain"])
