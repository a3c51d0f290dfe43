"""What several commands take, as argparse reads it, and what they refuse."""

import argparse
from pathlib import Path

from rocket_hf.errors import UserError


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def resolution(text: str) -> str | int:
    return int(text) if text.isdigit() else text


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def require_at_least_one(arguments: argparse.Namespace, *names: str) -> None:
    """Of each that is given."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")


def name_of(source: str) -> str:
    """A folder's own name and its parent's, where those are of a run: `runs/rocket` and `runs/none` tell the runs."""
    return "/".join(Path(source).resolve().parts[-2:]) if Path(source).exists() else source.partition("@")[0]


def require_device(name: str) -> None:
    """Raise a UserError if `name` is not a torch device of this machine."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: PyTorch was built without CUDA
        raise UserError(
            f"--device {name!r} is not available ({str(error).splitlines()[0]}): use cpu, cuda or cuda:N"
        ) from error
