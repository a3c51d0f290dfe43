"""A configuration that refuses what it does not know.

transformers keeps unknown keys as attributes, so that a misspelt key silently means the default. Here it is an error
that names the nearest right key.
"""

import difflib
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig

# Keys that transformers itself writes to config.json or passes to the constructor, beside the declared fields.
PASSED_BY_TRANSFORMERS = frozenset({
    "model_type", "auto_map", "name_or_path", "_name_or_path", "_commit_hash", "torch_dtype", "num_labels",
    "output_attentions", "attn_implementation", "_attn_implementation_internal", "experts_implementation",
    "_experts_implementation_internal",
})  # fmt: skip

# What transformers needs in config.json to find the classes and the dtype again.
WRITTEN_FOR_LOADING = frozenset({"architectures", "auto_map", "dtype"})


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error sentence: the nearest right name, or all of them when none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


class StrictConfig(PreTrainedConfig):
    def __post_init__(self, **kwargs):
        known = self.own_keys()
        for key in kwargs:
            if key not in known and key not in PASSED_BY_TRANSFORMERS:
                raise ValueError(f"{type(self).__name__} has no key {key!r}: {nearest(key, known)}")
        super().__post_init__(**kwargs)

    @classmethod
    def own_keys(cls) -> set[str]:
        return {field.name for field in fields(cls)}

    @classmethod
    def declared(cls) -> set[str]:
        """The keys that the class adds to those of every transformers configuration."""
        return cls.own_keys() - {field.name for field in fields(PreTrainedConfig)}

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """Overrides go through the constructor, to be checked like what stands in the file."""
        overrides = {key: kwargs.pop(key) for key in (cls.own_keys() - {"dtype"}) & kwargs.keys()}
        if not kwargs.get("return_unused_kwargs"):
            for key in kwargs.keys() - PASSED_BY_TRANSFORMERS - {"return_unused_kwargs", "dtype"}:
                raise ValueError(f"{cls.__name__} has no key {key!r}: {nearest(key, cls.own_keys())}")
        return super().from_dict({**config_dict, **overrides}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """What this class declares, and nothing of the classification heads and generators that transformers knows."""
        kept = self.declared() | {"model_type", "transformers_version"}
        return {key: value for key, value in super().to_dict().items() if key in kept}

    def written_for_loading(self) -> dict[str, Any]:
        """What the configuration of a whole model writes beside what it declares."""
        written = super().to_dict().items()
        return {key: value for key, value in written if key in WRITTEN_FOR_LOADING}

    def require_positive(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{type(self).__name__}.{name} must be at least 1, got {getattr(self, name)}")

    def require_multiples(self, **divisors: str) -> None:
        """Of each named size, that it can be divided by another one."""
        for name, divisor in divisors.items():
            size, part = getattr(self, name), getattr(self, divisor)
            if size % part:
                raise ValueError(f"{type(self).__name__}.{name}={size} must be a multiple of {divisor}={part}")
