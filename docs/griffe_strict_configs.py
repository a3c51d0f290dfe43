"""Extension of griffe that documents the constructor of configuration classes.

Configurations are declared like dataclasses, but with huggingface_hub's decorator `strict`, which griffe does not know.
The extension gives each of them an `__init__` whose parameters are the annotated fields, so that the API page shows types
and defaults.
"""

from typing import Any

import griffe

DECORATOR = "strict"


class StrictConfigs(griffe.Extension):
    """Adds `__init__` to classes that are decorated with `@strict`."""

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        if any(str(decorator.value) == DECORATOR for decorator in cls.decorators) and "__init__" not in cls.members:
            cls.set_member("__init__", constructor(cls))


def constructor(cls: griffe.Class) -> griffe.Function:
    """Return an `__init__` with one keyword parameter per annotated field."""
    keyword_only = griffe.ParameterKind.keyword_only
    parameters = [griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)]
    for name, field in cls.attributes.items():
        if field.annotation is not None:
            parameters.append(
                griffe.Parameter(name, annotation=field.annotation, default=field.value, kind=keyword_only)
            )
    return griffe.Function("__init__", parameters=griffe.Parameters(*parameters), lineno=cls.lineno, parent=cls)
