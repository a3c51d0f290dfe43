"""Values of settings: numbers, ranges and lists of names, with one sentence for each mistake."""

import math
from collections.abc import Collection

from rocket_hf.errors import UserError

from .names import require_known


def parse_number(setting: str, text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise UserError(
            f"{setting} takes numbers from {format_number(low)} to {format_number(high)}, got {text.strip()!r}"
        )
    return value + 0.0  # turns -0 into 0


def parse_range(setting: str, text: str, low: float, high: float) -> tuple[float, float]:
    """Parse `LOW..HIGH`, or one number for a range of one value."""
    first, dots, second = text.partition("..")
    start = parse_number(setting, first, low, high)
    end = parse_number(setting, second, low, high) if dots else start
    if start > end:
        raise UserError(f"the range {setting}={text} is reversed: write {setting}={second}..{first}")
    return start, end


def parse_names(owner: str, kind: str, text: str, known: Collection[str]) -> tuple[str, ...]:
    """Parse different names joined by `+`."""
    names = tuple(name.strip() for name in text.split("+"))
    for name in names:
        require_known(owner, kind, name, known)
        if names.count(name) > 1:
            raise UserError(f"{kind} {name!r} is named more than once in {text!r}: remove one of them")
    return names


def format_number(value: float) -> str:
    return f"{value:.12g}"
