"""Extension of griffe that documents the fields of configurations and of other data classes on the API page.

- Configurations are declared like dataclasses, but with huggingface_hub's decorator `strict`, which griffe does not
  know. Each gets an `__init__` whose parameters are the annotated fields, so that types and defaults are shown.
- Fields of dataclasses, TypedDicts and NamedTuples have their descriptions in comments. Each class gets an "Attributes"
  section in its docstring, made from these comments.
"""

from typing import Any

import griffe

STRICT = "strict"
FIELD_CLASSES = {"TypedDict", "NamedTuple"}


class Fields(griffe.Extension):
    """Adds `__init__` to configurations, and a table of fields to other data classes."""

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        decorators = {str(decorator.value).partition("(")[0] for decorator in cls.decorators}
        if STRICT in decorators:
            cls.set_member("__init__", constructor(cls))
        elif "dataclass" in decorators or FIELD_CLASSES & {str(base) for base in cls.bases}:
            add_field_table(cls)


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


def add_field_table(cls: griffe.Class) -> None:
    """Append an "Attributes" section to the docstring of a class, unless it has one."""
    if cls.docstring is None or "Attributes:" in cls.docstring.value:
        return
    fields = [(name, field_comment(field)) for name, field in cls.attributes.items() if field.annotation is not None]
    if any(comment for _, comment in fields):
        rows = [f"    {name}: {comment or '-'}" for name, comment in fields]
        cls.docstring.value += "\n\nAttributes:\n" + "\n".join(rows)


def field_comment(field: griffe.Attribute) -> str:
    """Return the comment in the last line of a field's definition."""
    lines = field.lines
    return lines[-1].partition("  # ")[2] if lines else ""
