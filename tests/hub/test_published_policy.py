"""Tests that users without this package load a published policy by tag, commit or branch, with the trained actions."""

import inspect
import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from rocket_hf.export.policy_folder import shipped_files
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.publishing import PolicyPackage, push

from . import policies
from .clients import WITHOUT_PACKAGE, run, start
from .policies import PROVENANCE, predict, processor_of, tiny_policy, write_published
from .test_upload import FETCH, PUSH, has_files_of

USER_SCRIPT = (
    WITHOUT_PACKAGE
    + "import sys\nimport torch\nfrom typing import Any\n"
    + inspect.getsource(policies.predict)
    + """
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor

repo, out, *revisions = sys.argv[1:]
actions = {}
for revision in revisions:
    model = AutoModel.from_pretrained(repo, revision=revision, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(repo, revision=revision, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules.")
    report = model.self_test()
    assert report.distance < 1e-6
    print(revision, type(model).__module__.split(".")[-2])  # the commit of the model's code
    actions[revision] = predict(model, processor).contiguous()
save_file(actions, out)
"""
)


def test_published_policy_matches_trained_policy_in_clean_process(hub, tmp_path):
    """Check a private repository with several shards while a second policy is being pushed to its `main` branch."""
    old, new = tiny_policy(seed=0), tiny_policy(seed=1)
    first = write_published(tmp_path / "first", old, repo="ada/arm", tag="v1", shard_size="100KB")
    second = write_published(tmp_path / "second", new, repo="ada/arm", tag="v2")
    run(hub.url, PUSH, first, "ada/arm", "v1:private", home=tmp_path / "publisher")
    arm = hub.model("ada/arm")
    commit = arm.tags["v1"]
    arm.branches["stable"] = commit

    # The second push has uploaded its files but its commit waits, so that `main` must still be the first policy.
    second_commit = hub.fault("POST .*/commit/", wait=(release := threading.Event()))
    publisher = start(hub.url, PUSH, second, "ada/arm", "v2:private", home=tmp_path / "publisher")
    assert second_commit.seen.wait(60)
    out, home = tmp_path / "actions.safetensors", tmp_path / "user"
    revisions = ("v1", commit, "stable", "main")
    code, printed, errors = run(hub.url, USER_SCRIPT, "ada/arm", out, *revisions, home=home)
    assert code == 0, errors
    assert printed.splitlines() == [f"{revision} {commit}" for revision in revisions]
    trained = predict(old, processor_of(old))
    assert all(torch.equal(actions, trained) for actions in load_file(out).values())

    release.set()
    assert publisher.communicate(timeout=60)[0].startswith("changed")
    assert has_files_of(arm.head, second) and has_files_of(arm.commits[commit], first)
    # For a user without access, the private repository does not exist.
    _, printed, _ = run(hub.url, FETCH.replace("ada/none", "ada/arm"), home=tmp_path / "other", token=None)
    assert "the repository ada/arm does not exist" in printed.splitlines()[1]


@pytest.mark.slow
def test_cached_policy_loads_without_network(hub, tmp_path):
    """Check that a second process loads the policy from the cache by its tag and by its commit."""
    model = tiny_policy()
    folder = write_published(tmp_path / "policy", model, repo="ada/arm", tag="v1", shard_size="100KB")
    run(hub.url, PUSH, folder, "ada/arm", "v1", home=tmp_path / "publisher")
    out, home, commit = tmp_path / "actions.safetensors", tmp_path / "user", hub.model("ada/arm").tags["v1"]
    assert run(hub.url, USER_SCRIPT, "ada/arm", out, "v1", home=home)[0] == 0
    out.unlink()
    requests = len(hub.requests)
    code, _, errors = run(hub.url, USER_SCRIPT, "ada/arm", out, "v1", commit, home=home, HF_HUB_OFFLINE="1")
    assert code == 0, errors
    trained = predict(model, processor_of(model))
    assert all(torch.equal(actions, trained) for actions in load_file(out).values())
    assert len(hub.requests) == requests


@pytest.mark.parametrize("family", ["pi0", "pi05", "smolvla", "openvla-oft"])
def test_published_folder_contains_trained_weights_and_allowed_files_only(family, tmp_path):
    model = tiny_policy(family)
    folder = write_published(tmp_path / "policy", model, shard_size="100KB")
    names = {path.name for path in folder.iterdir()}
    weights = {name for name in names if name.startswith("model-") and name.endswith(".safetensors")}
    processor = {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    code = {path.name for path in shipped_files()}
    lerobot = {"policy_preprocessor.json", "policy_postprocessor.json"}
    other = {"config.json", "model.safetensors.index.json", "self_test.safetensors", "README.md"}
    assert len(weights) > 1 and names == weights | processor | code | lerobot | other
    policy = {name: value for name, value in model.state_dict().items() if name.startswith("policy.")}
    published: dict[str, torch.Tensor] = {}
    for name in weights:
        published |= load_file(folder / name)
    assert published.keys() == policy.keys()
    assert all(torch.equal(published[name], value) for name, value in policy.items())
    loaded = RocketForActionPrediction.from_pretrained(folder)
    assert torch.equal(predict(loaded, processor_of(model)), predict(model, processor_of(model)))
    assert loaded.self_test().distance < 1e-6


def test_weight_file_is_at_most_one_percent_larger_than_the_weights(tmp_path):
    """Check a policy whose weights are large compared with the header of the file."""
    wide = tiny_policy(alignment=None).config.policy_config.to_dict() | {"vocab_size": 40_000}
    model = tiny_policy(policy_config=wide)
    folder = write_published(tmp_path / "policy", model)
    size = sum(value.nbytes for name, value in model.state_dict().items() if name.startswith("policy."))
    assert size < (folder / "model.safetensors").stat().st_size < 1.01 * size


def test_policy_is_published_in_chosen_dtype_and_self_test_reports_rounding_error(tmp_path):
    model = tiny_policy()
    folder = write_published(tmp_path / "policy", model, dtype=torch.bfloat16)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    report = RocketForActionPrediction.from_pretrained(folder).self_test()
    assert 0 < report.distance < report.tolerance and report.dtype == "bfloat16"


def test_unmerged_lora_layers_are_rejected():
    from peft import LoraConfig, inject_adapter_in_model

    model = tiny_policy(alignment=None)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"]), model)
    with pytest.raises(ValueError, match=r"LoRA layers of this model are not merged: call merge_and_unload\(\) first"):
        push(PolicyPackage(model, processor_of(model), PROVENANCE), "ada/arm")


def test_policy_with_nan_weight_is_rejected_and_leaves_no_folder(tmp_path):
    model = tiny_policy()
    with torch.no_grad():
        model.policy.action_in.bias[0] = float("nan")
    with pytest.raises(ValueError):
        write_published(tmp_path / "policy", model)
    assert not list(Path(tmp_path).iterdir())


def test_peft_example_of_the_card_saves_the_new_layers(tmp_path):
    """The layers that fit the new robot have no weights in the base, so the adapter must contain them."""
    folder = write_published(tmp_path / "policy", tiny_policy("openvla-oft"), repo="ada/arm")
    (snippet,) = [code for code in re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
                  if "get_peft_model" in code]  # fmt: skip
    names: dict[str, Any] = {}
    exec(snippet.replace("ada/arm", str(folder)), names)
    new_layers, policy = names["base"].new_layers, names["policy"]
    assert new_layers and names["loss"].isfinite()
    policy.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(any(name.startswith(f"base_model.model.{layer}.") for name in saved) for layer in new_layers)
