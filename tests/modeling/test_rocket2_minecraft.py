"""Tests of the encoding of Minecraft's actions against values computed by hand."""

import pytest
import torch

from rocket_hf.modeling.configuration_rocket2 import MINECRAFT_FACTORS, MINECRAFT_REST, Rocket2Config
from rocket_hf.modeling.rocket2_actions import ActionHeads, PreviousMinecraftAction
from rocket_hf.modeling.rocket2_minecraft import (
    BUTTONS,
    INVENTORY_INDEX,
    decode_action,
    decode_buttons,
    encode_action,
    reset_unused_camera,
)


def press(*buttons: str, camera=(0.0, 0.0)) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(name in buttons) for name in BUTTONS} | {"camera": torch.tensor(camera)}


@pytest.mark.parametrize(
    ("action", "choices"),
    [
        (press(), MINECRAFT_REST),
        (press("jump"), (2, 60)),
        (press("attack"), (4, 60)),
        (press("use", "attack", "jump"), (16 + 4 + 2, 60)),
        (press("sneak"), (2 * 32, 60)),
        (press("forward"), (1 * 32 * 3 * 3, 60)),
        (press("hotbar_9"), (9 * 32 * 3 * 3 * 3, 60)),
        (press("inventory", "jump", camera=(10.0, 0.0)), (8640, 60)),
        (press("forward", "back"), MINECRAFT_REST),
        (press(camera=(10.0, -10.0)), (1, 10 * 11 + 0)),
        (press(camera=(-90.0, 0.0)), (1, 0 * 11 + 5)),
        (press(camera=(0.0, 0.1)), MINECRAFT_REST),
    ],
)
def test_encoded_actions_equal_published_encoding(action, choices):
    """Check indices of groups with 10, 3, 3, 3, 2, 2, 2, 2 and 2 choices, the last running fastest."""
    assert encode_action(action).tolist() == list(choices)


def test_decoding_inverts_encoding_of_every_combination():
    assert MINECRAFT_FACTORS["buttons"] == INVENTORY_INDEX + 1
    index = torch.arange(MINECRAFT_FACTORS["buttons"])
    camera = torch.where(decode_buttons(index)["camera"], 71, 60)
    actions = torch.stack([index, camera], dim=-1)
    assert torch.equal(encode_action(decode_action(actions)), actions)
    cameras = torch.stack([torch.ones(121, dtype=torch.long), torch.arange(121)], dim=-1)
    encoded = encode_action(decode_action(cameras))
    assert torch.equal(encoded[:, 1], cameras[:, 1])


def test_camera_movement_follows_mu_law():
    """Check the first step: 2 of 10 degrees before the mu-law are (11 ** 0.2 - 1) / 10 of 10 degrees after it."""
    camera = decode_action(torch.tensor([1, 6 * 11 + 10]))["camera"]
    torch.testing.assert_close(camera, torch.tensor([11**0.2 - 1, 10.0]))


def test_camera_does_not_move_without_its_button():
    actions = torch.tensor([[2, 10], [3, 10]])
    assert decode_action(actions)["camera"].abs().sum(-1).gt(0).tolist() == [False, True]
    assert reset_unused_camera(actions).tolist() == [[2, 60], [3, 10]]


def test_previous_action_embeds_all_buttons_except_drop():
    embed = PreviousMinecraftAction(width=4)
    torch.manual_seed(0)
    embedded = embed(encode_action({name: value[None] for name, value in press("attack", "drop").items()}))
    tables = {name: embed.buttons[f"act_{name}"].weight for name in BUTTONS if name != "drop"}
    expected = embed.camera.bias + sum(table[int(name == "attack")] for name, table in tables.items())
    torch.testing.assert_close(embedded[0], expected)


def test_camera_at_rest_has_no_loss():
    heads = ActionHeads(Rocket2Config(width=8, heads=1))
    logits = heads(torch.randn(1, 3, 8))
    actions = torch.tensor([[[1, 60], [1, 5], [0, 60]]])
    losses = heads.losses(logits, actions, torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(losses["action/camera"], -logits["camera"][0, 1].log_softmax(-1)[5])
    entropies = -logits["buttons"][0].log_softmax(-1)
    torch.testing.assert_close(losses["action/buttons"], entropies[0, 1] + entropies[1, 1] + entropies[2, 0])
