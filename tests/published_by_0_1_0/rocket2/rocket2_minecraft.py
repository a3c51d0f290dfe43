"""Minecraft's actions as two choices: a combination of buttons, and a movement of the camera if the buttons open it.

Of each group of buttons at most one is down. The combinations are counted with the last group running fastest, and one
more, which opens the inventory and does nothing else. The camera moves by pitch and yaw, each one of 11 steps that are
finer near zero (mu-law).
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
OPPOSITES = ("along", "across")  # of which both together are none
INVENTORY = math.prod(1 + len(buttons) for buttons in GROUPS.values())
BUTTONS = (*(button for group, buttons in GROUPS.items() if group != "camera" for button in buttons), "inventory")

CAMERA_STEPS, CAMERA_REST = 11, 60
LARGEST, STEP, MU = 10.0, 2.0, 10.0  # degrees, degrees before the law, its strength


def read_buttons(index: Tensor) -> dict[str, Tensor]:
    """Which buttons a combination holds down, "camera" among them: bool tensors of the shape of `index`."""
    down = {"inventory": index == INVENTORY}
    rest = torch.where(down["inventory"], 0, index)
    for buttons in reversed(GROUPS.values()):
        choice = rest % (1 + len(buttons))
        rest = rest // (1 + len(buttons))
        down |= {button: choice == number for number, button in enumerate(buttons, start=1)}
    return down


def read_camera(index: Tensor) -> Tensor:
    """Degrees of pitch and yaw, in a dimension of their own."""
    steps = torch.stack([index // CAMERA_STEPS, index % CAMERA_STEPS], dim=-1)
    linear = (steps * STEP - LARGEST) / LARGEST
    return linear.sign() * ((1 + MU) ** linear.abs() - 1) / MU * LARGEST


def read_action(action: Tensor) -> dict[str, Tensor]:
    """Choices (..., 2) as the game takes them: each button bool, the camera (..., 2) in degrees."""
    down = read_buttons(action[..., 0])
    moves = down.pop("camera")[..., None]
    return down | {"camera": read_camera(action[..., 1]) * moves}


def write_action(action: Mapping[str, Tensor]) -> Tensor:
    """The other way: buttons (...) and the camera (..., 2) to the nearest choices (..., 2). Of several buttons of one
    group the last counts."""
    squeezed = action["camera"].clamp(-LARGEST, LARGEST) / LARGEST
    curved = squeezed.sign() * torch.log1p(MU * squeezed.abs()) / math.log1p(MU)
    steps = ((curved + 1) * LARGEST / STEP).round().long()
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
    """Choices (..., 2) with the camera at rest where the buttons do not open it."""
    opened = read_buttons(action[..., 0])["camera"]
    return torch.stack([action[..., 0], torch.where(opened, action[..., 1], CAMERA_REST)], dim=-1)
