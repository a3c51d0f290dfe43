"""Comparisons of a study: `a - b`, and interactions `(a - b) - (c - d)`."""

import re

from rocket_hf.errors import UserError

DIFFERENCE = r"(\S+) - (\S+)"
INTERACTION = r"\((\S+) - (\S+)\) - \((\S+) - (\S+)\)"


def parse_comparison(text: str) -> dict[str, int]:
    """Return the coefficient of each variant: {"a": 1, "b": -1} for `a - b`."""
    signs: tuple[int, ...]
    if match := re.fullmatch(INTERACTION, text):
        signs = (1, -1, -1, 1)
    elif match := re.fullmatch(DIFFERENCE, text):
        signs = (1, -1)
    else:
        raise UserError(f"a comparison is `a - b` or `(a - b) - (c - d)` with spaces around each minus, got {text!r}")
    if len(set(match.groups())) < len(signs):
        raise UserError(f"the comparison {text!r} names a variant twice")
    return dict(zip(match.groups(), signs, strict=True))


def is_interaction(text: str) -> bool:
    return len(parse_comparison(text)) == 4


def differences_of(text: str) -> tuple[str, str]:
    """Return the two differences of an interaction: `a - b` and `c - d`."""
    first, second, third, fourth = parse_comparison(text)
    return f"{first} - {second}", f"{third} - {fourth}"
