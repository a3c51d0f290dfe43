"""ROCKET-2's public layout, written here with timm's and torch's own modules, converts and does the same."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from rocket_hf.commands import main
from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.rocket2_interface import Goal
from rocket_hf.modeling.rocket2_minecraft import read_action

from .published_rocket2 import KEYS, Published

STEPS = 7


@pytest.fixture(scope="module")
def published() -> Published:
    torch.manual_seed(0)
    model = Published()
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
    source = store(published.state_dict(), folder / "theirs")
    assert main(["convert", "rocket2", str(source), str(folder / "ours")]) == 0
    return folder / "ours"


@pytest.fixture(scope="module")
def ours(converted) -> Rocket2ForActionPrediction:
    return Rocket2ForActionPrediction.from_pretrained(converted)


@pytest.fixture(scope="module")
def batch(ours):
    return ours.config.fake_batch(batch_size=1, steps=STEPS, goals=3)


@pytest.fixture(scope="module")
def expected(published, batch) -> dict[str, torch.Tensor]:
    """What the published layout computes, from what the game tells."""
    index, done = batch["goal_index"][0], read_action(batch["previous_actions"][0])
    goals = (batch[key][0, index] for key in ("goal_images", "goal_masks", "goal_interactions"))
    with torch.no_grad():
        return published(batch["images"][0], *goals, {key: done[key].long() for key in KEYS}, done["camera"])


def test_sizes_are_read_off_the_tensors(ours):
    config = ours.config
    assert (config.width, config.heads, config.view_tokens, config.window_steps) == (32, 2, 3, 3)
    assert (config.rgb_depth, config.rgb_width, config.mask_heads, list(config.image_size)) == (3, 64, 1, [32, 32])


def test_chunks_give_what_the_published_layout_gives(ours, batch, expected):
    with torch.no_grad():
        output = ours(**batch)
    for name, value in (output.logits | output.auxiliary).items():
        torch.testing.assert_close(value[0], expected[name], atol=2e-5, rtol=1e-5)
        assert expected[name].std(dim=0).mean() > 1e-3, name


def test_steps_with_a_memory_give_what_the_published_layout_gives(ours, batch, expected):
    """More steps than the window has, the goal changing now and then, the previous action told by the episode."""
    state, last = ours.initial_state(), None
    for step, index in enumerate(batch["goal_index"][0].tolist()):
        goal = Goal(*(batch[key][:, index] for key in ("goal_images", "goal_masks", "goal_interactions")))
        state = replace(state, previous_actions=batch["previous_actions"][:, step])
        action, state = ours.step(batch["images"][:, step], goal if index != last else None, state, temperature=0)
        last = index
        wanted = {name: value[step] for name, value in expected.items()}
        assert action[0, 0] == wanted["buttons"].argmax()
        torch.testing.assert_close(state.seen["point"][0], wanted["point"], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(state.seen["visibility"][0], wanted["visibility"][0].sigmoid())
    assert ours.config.window_steps < STEPS


def test_every_tensor_is_accounted_for(published, converted):
    report = json.loads((converted / "conversion.json").read_text())
    used = {source.partition("[")[0] for sources in report["mapped"].values() for source in sources}
    assert used | report["dropped"].keys() == published.state_dict().keys()
    assert {name.partition(".")[0] for name in report["dropped"]} == {"value_head"}
    assert report["mapped"]["auxiliary.point.weight"] == ["aux_vis_head.weight[1:3]"]


@pytest.mark.parametrize(
    ("width", "heads", "total", "trainable"), [(1024, 8, 187_440_837, 101_643_714), (1536, 16, 299_709_957, None)]
)
def test_public_sizes_have_their_parameters(width, heads, total, trainable):
    """The published totals are with the value head, which is dropped; its three running figures are never trained."""
    with torch.device("meta"):
        theirs = Published(width, heads, layers=4, steps=128, views=9, rgb={}, mask={})
        ours = Rocket2ForActionPrediction(Rocket2Config(width=width, heads=heads))
    assert len(theirs.state_dict()) == 450
    assert sum(parameter.numel() for parameter in theirs.parameters()) == total
    value_head = width + 1
    assert sum(parameter.numel() for parameter in ours.parameters()) == total - value_head - 3
    if trainable:
        own = sum(parameter.numel() for parameter in ours.parameters() if parameter.requires_grad)
        assert own == trainable - value_head


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda weights: weights.pop("final_ln.bias"), "lacks 1 tensors of the policy"),
        (lambda weights: weights.update(extra=torch.zeros(2)), "has the tensor extra, which this family does not know"),
        (lambda weights: weights.pop("view_cls_tokens"), "lacks the tensor view_cls_tokens"),
        (lambda weights: weights.update({"aux_vis_head.weight": torch.zeros(5, 32)}), "it should have 7 rows"),
    ],
)
def test_what_does_not_fit_is_one_sentence(published, tmp_path, capsys, change, sentence):
    weights = dict(published.state_dict())
    change(weights)
    source = store(weights, tmp_path / "theirs")
    assert main(["convert", "rocket2", str(source), str(tmp_path / "ours")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


def test_options_of_other_families_are_refused(tmp_path, capsys):
    assert main(["convert", "rocket2", str(tmp_path), str(tmp_path / "ours"), "--base", "x"]) == 2
    assert "no use for --base" in capsys.readouterr().err
