"""Base class of configurations that reject unknown keys.

transformers keeps unknown keys as attributes, so that a misspelled key silently means the default. Here it is an error
that suggests the nearest known key.
"""

import difflib
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig

from .errors import UserError
from .size_limits import check_size

# Keys that transformers itself writes to config.json or passes to the constructor, beside the declared fields.
PASSED_BY_TRANSFORMERS = frozenset({
    "model_type", "auto_map", "name_or_path", "_name_or_path", "_commit_hash", "torch_dtype", "num_labels",
    "output_attentions", "attn_implementation", "_attn_implementation_internal", "experts_implementation",
    "_experts_implementation_internal",
})  # fmt: skip

# Keys of config.json from which transformers finds the classes and the dtype when it loads a model.
WRITTEN_FOR_LOADING = frozenset({"architectures", "auto_map", "dtype"})


def suggest_name(name: str, known: Iterable[str]) -> str:
    """Return "did you mean NAME?" with the nearest known name, or the list of known names if none is similar.

    Error messages about an unknown name end with this text.
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


class StrictConfig(PreTrainedConfig):
    """Configuration that rejects unknown keys and writes only the keys that its class declares."""

    def __post_init__(self, **kwargs):
        known = self.known_keys()
        for key in kwargs:
            if key not in known and key not in PASSED_BY_TRANSFORMERS:
                raise UserError(f"{type(self).__name__} has no key {key!r}: {suggest_name(key, known)}")
        super().__post_init__(**kwargs)

    @classmethod
    def known_keys(cls) -> set[str]:
        """Return the keys of this class and of every transformers configuration."""
        return {field.name for field in fields(cls)}

    @classmethod
    def declared_keys(cls) -> set[str]:
        """Return the keys of this class without those of every transformers configuration."""
        return cls.known_keys() - {field.name for field in fields(PreTrainedConfig)}

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """Create a configuration from the content of a config.json.

        Overrides in `kwargs` go through the constructor, which checks them like the values of the file.
        """
        # dtype="auto" is a request to from_pretrained and no value of the configuration, so transformers handles dtype.
        overrides = {key: kwargs.pop(key) for key in (cls.known_keys() - {"dtype"}) & kwargs.keys()}
        # With return_unused_kwargs, the caller passes the remaining arguments on to the model, which checks them.
        if not kwargs.get("return_unused_kwargs"):
            for key in kwargs.keys() - PASSED_BY_TRANSFORMERS - {"return_unused_kwargs", "dtype"}:
                raise UserError(f"{cls.__name__} has no key {key!r}: {suggest_name(key, cls.known_keys())}")
        return super().from_dict({**config_dict, **overrides}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the declared keys, the model type and the transformers version.

        Other keys of transformers, for instance for classification heads and text generation, have no meaning here.
        """
        kept = self.declared_keys() | {"model_type", "transformers_version"}
        return {key: value for key, value in super().to_dict().items() if key in kept}

    def loading_keys(self) -> dict[str, Any]:
        """Return the keys from which transformers finds the classes and the dtype of a model.

        The configuration of a whole model adds them to `to_dict`; nested configurations do not need them.
        """
        written = super().to_dict().items()
        return {key: value for key, value in written if key in WRITTEN_FOR_LOADING}

    def check_sizes(self, *names: str, minimum: int = 1) -> None:
        """Raise a UserError if one of the named integers is less than `minimum` or above its limit (size_limits.py)."""
        for name in names:
            check_size(type(self).__name__, name, getattr(self, name), minimum)

    def require_multiples(self, **divisors: str) -> None:
        """Raise a UserError if a size is not a multiple of another, for instance `require_multiples(width="heads")`."""
        for name, divisor in divisors.items():
            size, part = getattr(self, name), getattr(self, divisor)
            if size % part:
                raise UserError(f"{type(self).__name__}.{name}={size} must be a multiple of {divisor}={part}")
