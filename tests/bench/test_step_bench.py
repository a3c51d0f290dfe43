"""The benchmark times real steps of the three ways, and reports them under the names that it promises."""

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
    setting = step.Setting(
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
    AcceleratorState._reset_state(True)  # whatever earlier tests set up
    monkeypatch.setitem(step.SETTINGS, "25m", setting)
    monkeypatch.setattr(step, "PAIRS", (1, 2))
    monkeypatch.setattr(step, "CAMERA_SIZE", 28)
    monkeypatch.setattr(step.NoiseFrames, "sizes", dict.fromkeys(step.CAMERAS, (28, 28)))
    threads = torch.get_num_threads()
    yield setting
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(True)


def test_the_setting_for_a_gpu_runs_at_a_tiny_size(small, tmp_path):
    """OpenVLA-OFT with LoRA, policy and teacher in bfloat16."""
    policy = OpenVLAPolicyConfig(variant="oft", **OPENVLA_SIZES)
    parts = step.OPENVLA.parts
    changed = dataclasses.replace(small, policy=policy, parts=parts, dtype=torch.bfloat16, chunk_size=2)
    stage = step.Stage(changed, tmp_path / "cache")
    for way in ("plain", "cached", "live"):
        learner = stage.learner(way, 3)
        head = learner.policy.policy.action_head.fc_out.weight
        before = head.detach().clone()
        stage.job_of(learner)()
        assert head.dtype == torch.float32 and not torch.equal(before, head)
        assert learner.policy.policy.embed_tokens.weight.dtype == torch.bfloat16


def test_the_figures_and_their_report(small):
    figures = step.measure()
    assert {"cached_to_plain", "live_to_plain", "by_pairs"} <= figures.keys()
    assert figures["by_pairs"].keys() == {"1", "2"}
    assert json.loads(json.dumps(figures)) == figures
    assert f"{figures['cached_to_plain']:.3f}" in step.report(figures)


def test_each_way_trains_and_cached_steps_are_live_ones(small, tmp_path):
    """Up to the rounding of the cache to bfloat16; a plain step has no alignment in it."""
    stage = step.Stage(small, tmp_path / "cache")
    after = {}
    for way in ("plain", "cached", "live"):
        learner = stage.learner(way, 3)
        before = learner.policy.policy.layers[0].language.mlp.up_proj.weight.detach().clone()
        torch.manual_seed(1)
        stage.job_of(learner)()
        after[way] = learner.policy.policy.layers[0].language.mlp.up_proj.weight.detach()
        assert not torch.equal(before, after[way])
    torch.testing.assert_close(after["cached"], after["live"], atol=1e-6, rtol=1e-3)
    assert not torch.equal(after["cached"], after["plain"])
