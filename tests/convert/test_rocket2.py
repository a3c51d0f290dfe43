"""Conversion of ROCKET-2 checkpoints, compared with a reference implementation in the public layout."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from rocket_hf.commands import main
from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.rocket2_interface import Goal
from rocket_hf.modeling.rocket2_minecraft import decode_action

from .published_rocket2 import KEYS, ReferenceRocket2

STEPS = 7
HEADS = ["--heads", "rgb=1", "--heads", "mask=1"]  # of the reference's tiny encoders


@pytest.fixture(scope="module")
def published() -> ReferenceRocket2:
    torch.manual_seed(0)
    model = ReferenceRocket2()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4 if parameter.dim() > 1 else 0.2)
    return model.eval()


def store(weights, folder):
    folder.mkdir()
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def converted(published, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rocket2")
    source = store(published.state_dict(), folder / "public")
    assert main(["convert", "rocket2", str(source), str(folder / "ours"), *HEADS]) == 0
    return folder / "ours"


@pytest.fixture(scope="module")
def ours(converted) -> Rocket2ForActionPrediction:
    return Rocket2ForActionPrediction.from_pretrained(converted)


@pytest.fixture(scope="module")
def batch(ours):
    return ours.config.fake_batch(batch_size=1, steps=STEPS, goals=3)


@pytest.fixture(scope="module")
def expected(published, batch) -> dict[str, torch.Tensor]:
    """Outputs of the reference implementation for the batch."""
    index, previous = batch["goal_index"][0], decode_action(batch["previous_actions"][0])
    goals = (batch[key][0, index] for key in ("goal_images", "goal_masks", "goal_interactions"))
    with torch.no_grad():
        return published(batch["images"][0], *goals, {key: previous[key].long() for key in KEYS}, previous["camera"])


def test_sizes_are_inferred_from_the_tensors(ours):
    config = ours.config
    assert (config.width, config.heads, config.view_tokens, config.window_steps) == (32, 2, 3, 3)
    assert (config.rgb_depth, config.rgb_width, config.mask_heads, list(config.image_size)) == (3, 64, 1, [32, 32])


def test_forward_matches_the_reference(ours, batch, expected):
    with torch.no_grad():
        output = ours(**batch)
    for name, value in (output.logits | output.auxiliary).items():
        torch.testing.assert_close(value[0], expected[name], atol=2e-5, rtol=1e-5)
        assert expected[name].std(dim=0).mean() > 1e-3, name


def test_stepwise_inference_matches_the_reference(ours, batch, expected):
    """The episode is longer than the attention window, changes its goal and sets the previous actions."""
    state, last = ours.initial_state(), None
    for step, index in enumerate(batch["goal_index"][0].tolist()):
        goal = Goal(*(batch[key][:, index] for key in ("goal_images", "goal_masks", "goal_interactions")))
        state = replace(state, previous_actions=batch["previous_actions"][:, step])
        action, state = ours.step(batch["images"][:, step], goal if index != last else None, state, temperature=0)
        last = index
        reference = {name: value[step] for name, value in expected.items()}
        assert action[0, 0] == reference["buttons"].argmax()
        torch.testing.assert_close(state.seen["point"][0], reference["point"], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(state.seen["visibility"][0], reference["visibility"][0].sigmoid())
    assert ours.config.window_steps < STEPS


def test_report_accounts_for_every_tensor(published, converted):
    report = json.loads((converted / "conversion.json").read_text())
    used = {source.partition("[")[0] for sources in report["mapped"].values() for source in sources}
    assert used | report["dropped"].keys() == published.state_dict().keys()
    assert {name.partition(".")[0] for name in report["dropped"]} == {"value_head"}
    assert report["mapped"]["auxiliary.point.weight"] == ["aux_vis_head.weight[1:3]"]


@pytest.mark.parametrize(
    ("width", "heads", "total", "trainable"), [(1024, 8, 187_440_837, 101_643_714), (1536, 16, 299_709_957, None)]
)
def test_public_sizes_have_the_published_parameter_counts(width, heads, total, trainable):
    """The published totals include the value head, which is dropped; its three running statistics are not trained."""
    with torch.device("meta"):
        reference = ReferenceRocket2(width, heads, layers=4, steps=128, views=9, rgb={}, mask={})
        ours = Rocket2ForActionPrediction(Rocket2Config(width=width, heads=heads))
    assert len(reference.state_dict()) == 450
    assert sum(parameter.numel() for parameter in reference.parameters()) == total
    value_head = width + 1
    assert sum(parameter.numel() for parameter in ours.parameters()) == total - value_head - 3
    if trainable:
        trained = sum(parameter.numel() for parameter in ours.parameters() if parameter.requires_grad)
        assert trained == trainable - value_head


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("final_ln.bias"), "has no tensor for 1 of the policy's weights"),
        (lambda weights: weights.update(extra=torch.zeros(2)), "has an unexpected tensor extra"),
        (lambda weights: weights.pop("view_cls_tokens"), "has no tensor view_cls_tokens"),
        (lambda weights: weights.update({"aux_vis_head.weight": torch.zeros(5, 32)}), "expected 7 rows"),
    ],
)
def test_unexpected_layout_is_reported_in_one_sentence(published, tmp_path, capsys, change, message):
    weights = dict(published.state_dict())
    change(weights)
    source = store(weights, tmp_path / "public")
    assert main(["convert", "rocket2", str(source), str(tmp_path / "ours"), *HEADS]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


def test_options_of_other_families_are_rejected(tmp_path, capsys):
    assert main(["convert", "rocket2", str(tmp_path), str(tmp_path / "ours"), "--base", "x"]) == 2
    assert "does not use --base" in capsys.readouterr().err
