"""Names that a user may mistype."""

from collections.abc import Collection

from rocket_hf.errors import UserError


def require_known(place: str, kind: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        from rocket_hf.modeling.strict_config import nearest  # brings transformers, which no simulator needs

        raise UserError(f"{place} has no {kind} {name!r}: {nearest(name, known)}")
