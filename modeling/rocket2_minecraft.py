"""Encoding of Minecraft's actions as two choices: a button combination, and a camera movement.

At most one button of each group is pressed. The index of a combination counts with the last group running fastest; one
more index opens the inventory and does nothing else. The camera moves only if the combination has the button "camera",
by pitch and yaw, each one of 11 steps that are finer near zero (mu-law).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

GROUPS = {
    "hotbar": tuple(f"hotbar_{slot}" for slot in range(1, 10)),
    "along": ("forward", "back"),
    "across": ("left", "right"),
    "pace": ("sprint", "sneak"),
    "use": ("use",),
    "drop": ("drop",),
    "attack": ("attack",),
    "jump": ("jump",),
    "camera": ("camera",),
}
OPPOSITES = ("along", "across")  # groups whose buttons cancel each other if both are pressed
INVENTORY = math.prod(1 + len(buttons) for buttons in GROUPS.values())
BUTTONS = (*(button for group, buttons in GROUPS.items() if group != "camera" for button in buttons), "inventory")

CAMERA_STEPS, CAMERA_REST = 11, 60
MAX_ANGLE, STEP, MU = 10.0, 2.0, 10.0  # degrees; degrees per step before the mu-law; strength of the mu-law


def decode_buttons(index: Tensor) -> dict[str, Tensor]:
    """Return which buttons (including "camera") each combination presses, as bool tensors of the shape of `index`."""
    down = {"inventory": index == INVENTORY}
    rest = torch.where(down["inventory"], 0, index)
    for buttons in reversed(GROUPS.values()):
        choice = rest % (1 + len(buttons))
        rest = rest // (1 + len(buttons))
        down |= {button: choice == number for number, button in enumerate(buttons, start=1)}
    return down


def decode_camera(index: Tensor) -> Tensor:
    """Return pitch and yaw in degrees, (..., 2), of camera movements (...)."""
    steps = torch.stack([index // CAMERA_STEPS, index % CAMERA_STEPS], dim=-1)
    linear = (steps * STEP - MAX_ANGLE) / MAX_ANGLE
    return linear.sign() * ((1 + MU) ** linear.abs() - 1) / MU * MAX_ANGLE


def decode_action(action: Tensor) -> dict[str, Tensor]:
    """Convert choices (..., 2) to the game's inputs: a bool for each button, and "camera" (..., 2) in degrees."""
    down = decode_buttons(action[..., 0])
    moves = down.pop("camera")[..., None]
    return down | {"camera": decode_camera(action[..., 1]) * moves}


def encode_action(action: Mapping[str, Tensor]) -> Tensor:
    """Convert the game's inputs to the nearest choices (..., 2). The last pressed button of each group counts."""
    squeezed = action["camera"].clamp(-MAX_ANGLE, MAX_ANGLE) / MAX_ANGLE
    curved = squeezed.sign() * torch.log1p(MU * squeezed.abs()) / math.log1p(MU)
    steps = ((curved + 1) * MAX_ANGLE / STEP).round().long()
    camera = steps[..., 0] * CAMERA_STEPS + steps[..., 1]
    down = {**action, "camera": camera != CAMERA_REST}
    index = torch.zeros_like(camera)
    for group, buttons in GROUPS.items():
        choice = torch.zeros_like(camera)
        for number, button in enumerate(buttons, start=1):
            choice = torch.where(down[button].bool(), number, choice)
        if group in OPPOSITES:
            choice = torch.where(down[buttons[0]].bool() & down[buttons[1]].bool(), 0, choice)
        index = index * (1 + len(buttons)) + choice
    inventory = down["inventory"].bool()
    return torch.stack([index.masked_fill(inventory, INVENTORY), camera.masked_fill(inventory, CAMERA_REST)], dim=-1)


def close_camera(action: Tensor) -> Tensor:
    """Return choices (..., 2) with the camera at rest wherever the buttons do not include "camera"."""
    is_open = decode_buttons(action[..., 0])["camera"]
    return torch.stack([action[..., 0], torch.where(is_open, action[..., 1], CAMERA_REST)], dim=-1)
