"""MkDocs hook that writes the tables of docs/recipes.md: the shipped recipes and every recipe key.

    python docs/generate_recipes.py     # print the tables

Keys, types and defaults are read from the dataclasses in training/recipe.py, and descriptions from the comments beside
their fields, so that the page cannot become outdated.
"""

import ast
import inspect
import io
import json
import tokenize
import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from rocket_hf.training.recipe import Rocket2Recipe, VLARecipe

RECIPE_CLASSES = {"VLA": VLARecipe, "ROCKET-2": Rocket2Recipe}
RECIPES_FOLDER = Path(__file__).resolve().parents[1] / "training" / "recipes"
PAGE = "recipes.md"
RECIPES_MARKER, KEYS_MARKER = "<!-- table of recipes -->", "<!-- tables of keys -->"
TYPE_NAMES = {bool: "true or false", int: "integer", float: "number", str: "text", Any: "any"}


@dataclass
class RecipeKey:
    """One key of a recipe, such as `optimizer.lr`."""

    name: str
    type: str
    default: str
    description: str
    kinds: list[str] = field(default_factory=list)  # the kinds of recipes that have the key


@dataclass
class RecipeSection:
    """The keys of one dataclass, such as those that begin with `optimizer.`."""

    name: str
    description: str
    keys: dict[str, RecipeKey] = field(default_factory=dict)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill the tables into docs/recipes.md."""
    if page.file.src_uri != PAGE:
        return markdown
    return markdown.replace(RECIPES_MARKER, recipes_table()).replace(KEYS_MARKER, key_tables())


# Keys of the dataclasses


def recipe_sections() -> dict[str, RecipeSection]:
    """Return the sections of all recipes by name, with the keys of both kinds of recipes."""
    sections: dict[str, RecipeSection] = {}
    for kind, recipe_class in RECIPE_CLASSES.items():
        for name, section_class in section_classes(recipe_class, ""):
            section = sections.setdefault(name, RecipeSection(name, section_description(section_class)))
            for key in section_keys(section_class, name):
                section.keys.setdefault(key.name, key).kinds.append(kind)
    return sections


def section_classes(recipe_class: type, name: str) -> Iterator[tuple[str, type]]:
    """Yield a dataclass and the dataclasses inside it by name. `N` stands for the number of a list entry."""
    yield name, recipe_class
    for key, annotation in field_types(recipe_class).items():
        inner = inner_dataclass(annotation)
        if inner is not None:
            number = ".N" if get_origin(annotation) is list else ""
            yield from section_classes(inner, f"{name}.{key}{number}".lstrip("."))


def section_keys(section_class: type, section: str) -> Iterator[RecipeKey]:
    types_of_fields, comments = field_types(section_class), field_comments(section_class)
    for entry in fields(section_class):
        annotation, name = types_of_fields[entry.name], f"{section}.{entry.name}".lstrip(".")
        if inner_dataclass(annotation) is None:
            yield RecipeKey(name, type_name(annotation), default_text(entry), comments.get(entry.name, ""))


def field_types(section_class: type) -> dict[str, Any]:
    hints = get_type_hints(section_class)
    return {entry.name: hints[entry.name] for entry in fields(section_class)}


def inner_dataclass(annotation: Any) -> type | None:
    """Return the dataclass of a section, of an optional section, or of the entries of a list."""
    candidates = [annotation, *get_args(annotation)]
    return next((candidate for candidate in candidates if is_dataclass(candidate)), None)


def section_description(section_class: type) -> str:
    """Return the docstring of a dataclass, unless it is the one that `dataclass` generates."""
    text = section_class.__doc__ or ""
    return "" if text.startswith(f"{section_class.__name__}(") else inspect.cleandoc(text)


def type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (types.UnionType, Union):
        return " or ".join("null" if argument is types.NoneType else type_name(argument) for argument in arguments)
    if origin is list:
        return f"list of {type_name(arguments[0])}s"
    if origin is dict:
        return "table"
    return TYPE_NAMES[annotation]


def default_text(entry: Field) -> str:
    default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
    return f"`{default if default and isinstance(default, str) else json.dumps(default)}`"


def field_comments(section_class: type) -> dict[str, str]:
    """Return the comments beside the fields of a dataclass; those of a subclass replace those of its base."""
    comments: dict[str, str] = {}
    for owner in reversed([base for base in section_class.__mro__ if is_dataclass(base)]):
        source = inspect.getsource(owner)
        by_line = {
            token.start[0]: token.string.lstrip("# ").removeprefix("type: ignore[assignment]")
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
        for statement in ast.walk(ast.parse(source)):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                comments[statement.target.id] = by_line.get(statement.end_lineno or 0, "")
    return comments


# Markdown


def key_tables() -> str:
    """Return a heading, a description and a table of keys for each section."""
    parts = []
    for section in recipe_sections().values():
        rows = [
            f"| `{key.name}` | {key.type} | {key.default} | {key.description} | {', '.join(key.kinds)} |"
            for key in section.keys.values()
        ]
        title = f"### `{section.name}`" if section.name else "### Top level"
        header = ["| key | value | default | meaning | recipes |", "|---|---|---|---|---|"]
        parts.append("\n".join([title, "", section.description, "", *header, *rows]))
    return "\n\n".join(parts)


def recipes_table() -> str:
    """Return a table of the shipped recipes and their descriptions."""
    rows = []
    for path in sorted(RECIPES_FOLDER.glob("*.yaml")):
        about = " ".join(yaml.safe_load(path.read_text(encoding="utf-8"))["about"].split())
        rows.append(f"| `{path.stem}` | {about} |")
    return "\n".join(["| recipe | description |", "|---|---|", *rows])


if __name__ == "__main__":
    print(recipes_table(), key_tables(), sep="\n\n")
