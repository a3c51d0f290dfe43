"""Check of names that a user may mistype."""

from collections.abc import Collection

from rocket_hf.errors import UserError


def require_known(owner: str, kind: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        from rocket_hf.modeling.strict_config import suggest_name  # imports transformers, which simulators do not need

        raise UserError(f"{owner} has no {kind} {name!r}: {suggest_name(name, known)}")
