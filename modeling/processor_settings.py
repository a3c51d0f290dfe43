"""Check of the kinds of a processor's settings, which its JSON file may have in any form."""

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import UserError


def check_kinds(texts: Mapping[str, Any], cameras: Any, statistics: Any) -> None:
    """Raise `UserError` if a setting of a processor is of another kind than it must be, as in a damaged file."""
    for name, value in texts.items():
        if not isinstance(value, str):
            raise UserError(f"the processor's {name} must be a text, got {value!r}: correct processor_config.json")
    if not isinstance(cameras, list | tuple) or not all(isinstance(name, str) for name in cameras):
        raise UserError(
            f"the processor's cameras must be a list of names, got {cameras!r}: correct processor_config.json"
        )
    tables = (
        [statistics or {}, *(statistics or {}).values()]
        if isinstance(statistics, Mapping) or statistics is None
        else [statistics]
    )
    if not all(isinstance(table, Mapping) for table in tables) or not all(
        isinstance(values, Sequence) and not isinstance(values, str)
        for table in tables[1:]
        for values in table.values()
    ):
        raise UserError(
            "the processor's statistics must be tables of lists, by state and action and by name: correct "
            "processor_config.json"
        )
