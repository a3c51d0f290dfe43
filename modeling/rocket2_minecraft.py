"""Encoding of Minecraft's actions as two indices: a button combination and a camera movement.

The encoding is that of OpenAI's VPT. At most one button of each group is pressed, so the index of a combination is a
mixed-radix number with one digit per group (0: no button), the last group being the least significant digit. One more
index, `INVENTORY_INDEX`, opens the inventory and does nothing else. The camera moves only if the combination contains
the button "camera". The index of its movement is 11 x pitch step + yaw step; the steps are finer near zero (mu-law).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

BUTTON_GROUPS = {
    "hotbar": tuple(f"hotbar_{slot}" for slot in range(1, 10)),
    "forward_back": ("forward", "back"),
    "left_right": ("left", "right"),
    "sprint_sneak": ("sprint", "sneak"),
    "use": ("use",),
    "drop": ("drop",),
    "attack": ("attack",),
    "jump": ("jump",),
    "camera": ("camera",),
}
OPPOSITE_GROUPS = ("forward_back", "left_right")  # groups whose buttons cancel each other if both are pressed
INVENTORY_INDEX = math.prod(1 + len(buttons) for buttons in BUTTON_GROUPS.values())
BUTTONS = (*(button for buttons in BUTTON_GROUPS.values() for button in buttons if button != "camera"), "inventory")

CAMERA_STEPS = 11  # number of steps of each angle; step 5 is 0 degrees
CAMERA_REST = 5 * CAMERA_STEPS + 5  # index without movement
MAX_ANGLE = 10.0  # degrees in each direction; larger movements are clipped
ANGLE_STEP = 2.0  # degrees between two steps before the mu-law
MU = 10.0  # strength of the mu-law


def decode_buttons(index: Tensor) -> dict[str, Tensor]:
    """Return a bool tensor of the shape of `index` for each button (including "camera"): whether it is pressed."""
    pressed = {"inventory": index == INVENTORY_INDEX}
    remainder = torch.where(pressed["inventory"], 0, index)
    for buttons in reversed(BUTTON_GROUPS.values()):
        choice = remainder % (1 + len(buttons))
        remainder = remainder // (1 + len(buttons))
        pressed |= {button: choice == number for number, button in enumerate(buttons, start=1)}
    return pressed


def decode_camera(index: Tensor) -> Tensor:
    """Convert indices of camera movements (...) to pitch and yaw in degrees, (..., 2)."""
    steps = torch.stack([index // CAMERA_STEPS, index % CAMERA_STEPS], dim=-1)
    linear = (steps * ANGLE_STEP - MAX_ANGLE) / MAX_ANGLE
    return linear.sign() * ((1 + MU) ** linear.abs() - 1) / MU * MAX_ANGLE


def decode_action(action: Tensor) -> dict[str, Tensor]:
    """Convert actions to the game's inputs.

    Args:
        action: Index of the button combination and of the camera movement, (..., 2).

    Returns:
        Each button of `BUTTONS` as (...) bool, and "camera" as pitch and yaw in degrees, (..., 2).
    """
    pressed = decode_buttons(action[..., 0])
    is_camera_used = pressed.pop("camera")[..., None]
    return pressed | {"camera": decode_camera(action[..., 1]) * is_camera_used}


def encode_action(action: Mapping[str, Tensor]) -> Tensor:
    """Convert the game's inputs, as `decode_action` returns them, to the nearest action, (..., 2).

    If several buttons of a group are pressed, the last one counts; opposite buttons cancel each other. The inventory
    button excludes all others and the camera.
    """
    angles = action["camera"].clamp(-MAX_ANGLE, MAX_ANGLE) / MAX_ANGLE
    compressed = angles.sign() * torch.log1p(MU * angles.abs()) / math.log1p(MU)
    steps = ((compressed + 1) * MAX_ANGLE / ANGLE_STEP).round().long()
    camera = steps[..., 0] * CAMERA_STEPS + steps[..., 1]
    pressed = {**action, "camera": camera != CAMERA_REST}  # replaces the angles by the button "camera"
    index = torch.zeros_like(camera)
    for group, buttons in BUTTON_GROUPS.items():
        choice = torch.zeros_like(camera)
        for number, button in enumerate(buttons, start=1):
            choice = torch.where(pressed[button].bool(), number, choice)
        if group in OPPOSITE_GROUPS:
            choice = torch.where(pressed[buttons[0]].bool() & pressed[buttons[1]].bool(), 0, choice)
        index = index * (1 + len(buttons)) + choice
    inventory = pressed["inventory"].bool()
    index, camera = index.masked_fill(inventory, INVENTORY_INDEX), camera.masked_fill(inventory, CAMERA_REST)
    return torch.stack([index, camera], dim=-1)


def reset_unused_camera(action: Tensor) -> Tensor:
    """Set the camera index of actions (..., 2) to `CAMERA_REST` where the button combination lacks "camera"."""
    is_camera_used = decode_buttons(action[..., 0])["camera"]
    return torch.stack([action[..., 0], torch.where(is_camera_used, action[..., 1], CAMERA_REST)], dim=-1)
