"""Tests of the self-test: it fails if a published policy no longer gives the recorded actions."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from rocket_hf.errors import UserError
from rocket_hf.export.policy_folder import cast_weights, record_self_test
from rocket_hf.modeling import self_test
from rocket_hf.modeling.self_test import SELF_TEST_FILE, read_self_test, relative_distance
from rocket_hf.publishing.verify import verify_policy

from ..hub.policies import processor_of, tiny_policy, write_published


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_published(tmp_path_factory.mktemp("published") / "policy", tiny_policy())


@pytest.fixture
def policy(published):
    from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction

    return RocketForActionPrediction.from_pretrained(published)


def test_relative_distance_is_ratio_of_root_mean_squares():
    reference = torch.tensor([[3.0, 4.0]])
    assert relative_distance(reference + torch.tensor([[0.3, -0.4]]), reference) == pytest.approx(0.1)
    assert relative_distance(reference, reference) == 0


@pytest.mark.parametrize("family", ["pi0", "smolvla", "openvla-oft"])
def test_file_is_read_as_it_was_written(family, tmp_path):
    model = tiny_policy(family)
    test = record_self_test(model, model.for_inference(), processor_of(model))
    test.write(tmp_path / SELF_TEST_FILE)
    read = read_self_test(tmp_path / SELF_TEST_FILE)
    for name in ("task", "tolerances", "image_effect", "versions"):
        assert getattr(read, name) == getattr(test, name)
    for name in ("batch", "images"):
        written, loaded = getattr(test, name), getattr(read, name)
        assert written.keys() == loaded.keys() and all(torch.equal(written[key], loaded[key]) for key in written)
    assert torch.equal(read.actions, test.actions) and torch.equal(read.state, test.state)
    assert (tmp_path / SELF_TEST_FILE).stat().st_size < 100_000


def test_published_policy_passes_in_every_dtype(published, policy):
    assert policy.self_test().distance < 1e-6
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        report = self_test.run_self_test(
            cast_weights(policy.for_inference(), dtype), read_self_test(published / SELF_TEST_FILE)
        )
        assert report.distance < report.tolerance


def test_changed_weights_fail(policy):
    with torch.no_grad():
        policy.policy.action_out.weight.mul_(1.02)
    with pytest.raises(
        ValueError, match=r"self-test failed: the actions differ by .*%.* in float32 they may differ by 0\.50%"
    ):
        policy.self_test()


def test_library_with_other_activation_fails_and_versions_are_named(policy, monkeypatch):
    """Simulate a library upgrade that changed an activation function."""
    monkeypatch.setattr(nn.functional, "silu", nn.functional.gelu)
    monkeypatch.setattr(self_test, "library_versions", lambda: {"torch": "9.9", "transformers": "8.8"})
    with pytest.raises(
        ValueError,
        match=r"published with torch 2.* and transformers 5.*; installed are torch 9\.9 and transformers 8\.8",
    ):
        policy.self_test()


def test_policy_that_ignores_images_fails(policy, published):
    actions = read_self_test(published / SELF_TEST_FILE).actions
    policy.policy.predict_action_chunk = lambda batch, generator: nn.functional.pad(actions, (0, 3))
    with pytest.raises(ValueError, match=r"inverting the images changes the actions by 0\.00%"):
        policy.self_test()


def test_nan_actions_fail(policy):
    with torch.no_grad():
        policy.policy.action_out.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="the predicted actions are not finite"):
        policy.self_test()


def test_model_that_was_not_loaded_has_no_self_test(published, tmp_path):
    with pytest.raises(ValueError, match="was not loaded from a folder or Hub repository"):
        tiny_policy().self_test()
    with pytest.raises(ValueError, match=f"has no {SELF_TEST_FILE}"):
        self_test.find_self_test(str(tmp_path), None)
    assert load_file(self_test.find_self_test(str(published), None))


@pytest.mark.parametrize("content", [b"", b"{}", bytes(100)], ids=["empty", "json", "zeros"])
def test_damaged_file_is_user_error(content, tmp_path):
    (tmp_path / SELF_TEST_FILE).write_bytes(content)
    with pytest.raises(UserError, match="is not a readable self-test"):
        read_self_test(tmp_path / SELF_TEST_FILE)


def test_verify_runs_published_code(published):
    verified = verify_policy(str(published))
    assert verified.commit is None and verified.report.distance < 1e-6
    assert f'AutoModel.from_pretrained("{published}", trust_remote_code=True)' in verified.snippet


def test_verify_rejects_changed_processor(published, tmp_path):
    import json
    import shutil

    folder = shutil.copytree(published, tmp_path / "policy")
    path = folder / "processor_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"resize": "stretch"}))
    with pytest.raises(ValueError, match="the processor's images differ"):
        verify_policy(str(folder))
    values["statistics"]["action"]["std"][0] *= 2
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="the processor's actions differ"):
        verify_policy(str(folder))


def without(name):
    return lambda tensors, metadata: tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("actions"), "actions"),
        (without("batch.images"), "it has no observation"),
        (lambda tensors, metadata: metadata.pop("tolerances"), "tolerances"),
        (lambda tensors, metadata: metadata.update(tolerances=[1]), "it has no tolerances"),
        (lambda tensors, metadata: metadata.update(image_effect="large"), "not finite numbers"),
        (lambda tensors, metadata: metadata.update(unknown=1), "unknown"),
        (lambda tensors, metadata: metadata.update(versions={"torch": "2", "other": "1"}), "its versions"),
        (lambda tensors, metadata: tensors.update(unknown=torch.zeros(1)), "unknown"),
        (lambda tensors, metadata: tensors.update(state=torch.zeros(2, 2)), "wrong shape"),
    ],
)
def test_malformed_self_test_is_a_user_error(change, message, published, tmp_path):
    tensors, metadata = self_test.read_tensors(published / SELF_TEST_FILE)
    change(tensors, metadata)
    self_test.write_tensors(tmp_path / SELF_TEST_FILE, tensors, metadata)
    with pytest.raises(UserError, match=f"is not a complete self-test .*{message}"):
        read_self_test(tmp_path / SELF_TEST_FILE)


@pytest.mark.parametrize("metadata", [[], 3, None, "text"])
def test_self_test_whose_metadata_is_no_table_is_a_user_error(metadata, published, tmp_path):
    tensors, _ = self_test.read_tensors(published / SELF_TEST_FILE)
    self_test.write_tensors(tmp_path / SELF_TEST_FILE, tensors, metadata)
    with pytest.raises(UserError, match="is not a complete self-test"):
        read_self_test(tmp_path / SELF_TEST_FILE)
