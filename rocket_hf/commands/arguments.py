"""Argument types and checks shared by several commands."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rocket_hf.errors import UserError


def integer_list(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected integers separated by commas, got {text!r}") from None


def image_resolution(text: str) -> str | int:
    return int(text) if text.isdigit() else text


def positive_integer(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


class RetiredOption(argparse.Action):
    """Option of an earlier version, which is rejected with the name of the option that replaced it."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: str | Sequence[Any] | None,
                 option_string: str | None = None) -> None:  # fmt: skip
        parser.error(f"{option_string} is now called {self.metavar}")


def add_retired_option(parser: argparse.ArgumentParser, old: str, new: str) -> None:
    parser.add_argument(old, action=RetiredOption, nargs="?", metavar=new, help=argparse.SUPPRESS)


def require_at_least_one(arguments: argparse.Namespace, *names: str) -> None:
    """Raise UserError if one of these arguments is given and less than 1."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")


def source_name(source: str) -> str:
    """Return a short name of a policy: the last two parts of its folder (`runs/rocket`), or its Hub repository id."""
    return "/".join(Path(source).resolve().parts[-2:]) if Path(source).exists() else source.partition("@")[0]


def require_device(name: str) -> None:
    """Raise a UserError if `name` is not a torch device of this machine."""
    import torch

    try:
        torch.zeros(1, device=name).item()  # a device without values, such as meta, raises here
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: PyTorch has no CUDA
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise UserError(f"--device {name!r} is not available ({reason}): use cpu, cuda or cuda:N") from error


def parse_cameras(text: str) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in text.split(",") if entry]
    for policy_camera, _, environment_camera in pairs:
        if not policy_camera or not environment_camera:
            raise UserError(f"--cameras takes POLICY=ENV,..., like front=corner2,wrist=gripperPOV, got {text!r}")
    return {policy_camera: environment_camera for policy_camera, _, environment_camera in pairs}
