"""A policy notices when it no longer does what it did where it was published."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from rocket_hf.export.self_test import in_dtype, record_self_test
from rocket_hf.modeling import self_test
from rocket_hf.modeling.self_test import FILE, distance, read_self_test
from rocket_hf.publishing.verify import verify

from ..hub.policies import processor_of, tiny_policy, write_published


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_published(tmp_path_factory.mktemp("published") / "policy", tiny_policy())


@pytest.fixture
def policy(published):
    from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction

    return RocketForActionPrediction.from_pretrained(published)


def test_distance_is_the_share_of_the_root_mean_square():
    wanted = torch.tensor([[3.0, 4.0]])
    assert distance(wanted + torch.tensor([[0.3, -0.4]]), wanted) == pytest.approx(0.1)
    assert distance(wanted, wanted) == 0


@pytest.mark.parametrize("family", ["pi0", "smolvla", "openvla-oft"])
def test_the_file_comes_back_as_it_was_written(family, tmp_path):
    model = tiny_policy(family)
    test = record_self_test(model, in_dtype(model, None), processor_of(model))
    test.write(tmp_path / FILE)
    read = read_self_test(tmp_path / FILE)
    for name in ("task", "tolerances", "image_effect", "versions"):
        assert getattr(read, name) == getattr(test, name)
    for name in ("batch", "images"):
        one, other = getattr(test, name), getattr(read, name)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert torch.equal(read.actions, test.actions) and torch.equal(read.state, test.state)
    assert (tmp_path / FILE).stat().st_size < 100_000


def test_the_published_policy_passes_in_every_dtype(published, policy):
    assert policy.self_test().distance < 1e-6
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        report = self_test.run_self_test(in_dtype(policy, dtype), read_self_test(published / FILE))
        assert report.distance < report.tolerance


def test_other_weights_fail_and_the_versions_are_named(policy):
    with torch.no_grad():
        policy.policy.action_out.weight.mul_(1.02)
    with pytest.raises(ValueError, match=r"self-test failed: the actions are .*% off .* in float32 they may be 0.50%"):
        policy.self_test()


def test_a_library_that_computes_otherwise_fails(policy, monkeypatch):
    """As if an upgrade had another activation: the sentence names both versions."""
    monkeypatch.setattr(nn.functional, "silu", nn.functional.gelu)
    monkeypatch.setattr(self_test, "versions", lambda: {"torch": "9.9", "transformers": "8.8"})
    with pytest.raises(ValueError, match=r"written with torch 2.* and transformers 5.*, here are torch 9.9"):
        policy.self_test()


def test_a_policy_that_no_longer_looks_fails(policy, published):
    actions = read_self_test(published / FILE).actions
    policy.policy.predict_action_chunk = lambda batch, generator: nn.functional.pad(actions, (0, 3))
    with pytest.raises(ValueError, match=r"other images change the actions by 0\.00%"):
        policy.self_test()


def test_no_number_fails(policy):
    with torch.no_grad():
        policy.policy.action_out.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="nan% off"):
        policy.self_test()


def test_a_model_from_nowhere_has_none(published, tmp_path):
    with pytest.raises(ValueError, match="not loaded from a folder or a repository"):
        tiny_policy().self_test()
    with pytest.raises(ValueError, match=f"holds no {FILE}"):
        self_test.find_self_test(str(tmp_path), None)
    assert load_file(self_test.find_self_test(str(published), None))


def test_verify_runs_the_code_beside_the_weights(published):
    verified = verify(str(published))
    assert verified.commit is None and verified.report.distance < 1e-6
    assert f'AutoModel.from_pretrained("{published}", trust_remote_code=True)' in verified.snippet


def test_verify_notices_another_processor(published, tmp_path):
    import json
    import shutil

    folder = shutil.copytree(published, tmp_path / "policy")
    path = folder / "processor_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"resize": "stretch"}))
    with pytest.raises(ValueError, match="the processor no longer makes the images"):
        verify(str(folder))
    values["statistics"]["action"]["std"][0] *= 2
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="the processor no longer makes the actions"):
        verify(str(folder))
