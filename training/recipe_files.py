"""Recipes from YAML files and from `--set`, checked key by key and type by type; and back to a file.

A file may begin with `like: NAME`, another recipe that it changes.
"""

import math
import types
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from rocket_hf.errors import UserError
from rocket_hf.modeling.strict_config import nearest

from .recipe import Recipe

FOLDER = Path(__file__).parent / "recipes"


def read_recipe(name: str, changes: Sequence[str] = ()) -> Recipe:
    """A recipe by its name or its file, with changes like `optimizer.lr=1e-4`."""
    values = read_yaml(name)
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise UserError(f"--set takes KEY=VALUE, for instance --set optimizer.lr=1e-4; got {change!r}")
        try:
            set_value(values, key, yaml.safe_load(text))
        except yaml.YAMLError:
            raise UserError(f"--set {change!r}: the value is not valid YAML") from None
    return typed(Recipe, values, "")


def read_yaml(name: str) -> dict[str, Any]:
    named = {path.stem: path for path in FOLDER.glob("*.yaml")}
    path = named.get(name, Path(name))
    if not path.is_file():
        raise UserError(f"there is no recipe {name!r}: {nearest(name, named)}; or give the path of a YAML file")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold keys and values, as the recipes in {FOLDER.name}/ do")
    like = values.pop("like", None)
    return merged(read_yaml(like) if like else {}, {"name": path.stem} | values)


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Tables key by key; all else is replaced."""
    both = {key: merged(values[key], value) for key, value in changes.items()
            if isinstance(value, dict) and isinstance(values.get(key), dict)}  # fmt: skip
    return values | changes | both


def set_value(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets `a.b.0.c`; sections and list entries that are not there yet are made."""
    *parents, last = key.split(".")
    place: Any = values
    for number, part in enumerate(parents):
        follower = [*parents, last][number + 1]
        place = step_into(place, part, [] if follower.isdecimal() else {}, key)
    if isinstance(place, list):
        step_into(place, last, None, key)
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise UserError(f"--set {key}: there is nothing at {last!r}")


def step_into(place: Any, part: str, new: Any, key: str) -> Any:
    if isinstance(place, dict):
        if place.get(part) is None:
            place[part] = new
        return place[part]
    if isinstance(place, list) and part.isdecimal() and int(part) <= len(place):
        if int(part) == len(place):
            place.append(new)
        return place[int(part)]
    raise UserError(f"--set {key}: there is nothing at {part!r}")


def typed(kind: Any, value: Any, where: str) -> Any:
    """The value as what the annotation says, or one sentence that says where it does not fit."""
    if kind is Any:
        return value
    if is_dataclass(kind):
        return typed_dataclass(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, Union):
        return typed_union(arguments, value, where)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{where}: {value!r} is not one of its values; {nearest(str(value), map(str, arguments))}")
        return value
    if origin is list:
        if not isinstance(value, list):
            raise UserError(f"{where} must be a list, got {value!r}")
        return [typed(arguments[0], entry, f"{where}.{number}") for number, entry in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where} must be a table, got {value!r}")
        return {str(key): typed(arguments[1], entry, f"{where}.{key}") for key, entry in value.items()}
    return typed_scalar(kind, value, where)


def typed_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"{where or 'a recipe'} must be a table of keys and values, got {value!r}")
    hints, prefix = get_type_hints(kind), f"{where}." if where else ""
    for key in value:
        if key not in hints:
            raise UserError(f"a recipe has no key {prefix}{key}: {nearest(str(key), hints)}")
    return kind(**{key: typed(hints[key], entry, prefix + key) for key, entry in value.items()})


def typed_union(kinds: Sequence[Any], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    left = [kind for kind in kinds if kind is not type(None)]
    for kind in left:
        if len(left) == 1 or isinstance(value, kind):
            return typed(kind, value, where)
    raise UserError(f"{where} must be {' or '.join(kind.__name__ for kind in left)}, got {value!r}")


def typed_scalar(kind: type, value: Any, where: str) -> Any:
    """YAML 1.1 reads 1e-4 as text and 1 as an integer; both are numbers here."""
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            value = float(value)
        except ValueError:
            raise UserError(f"{where} must be a number, got {value!r}") from None
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where} must be a finite number, got {value!r}")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{where} must be {kind.__name__}, got {value!r}")
    return value


def write_recipe(recipe: Recipe, path: Path) -> None:
    path.write_text(yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True))


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """The dotted keys in which two recipes differ."""
    if is_dataclass(old) and type(old) is type(new):
        return [
            key
            for entry in fields(old)
            for key in differences(
                getattr(old, entry.name), getattr(new, entry.name), f"{where}.{entry.name}".lstrip(".")
            )
        ]
    return [] if old == new else [where]


def changed(recipe: Any, where: str = "") -> list[tuple[str, Any]]:
    """What a recipe says beyond the defaults, as dotted keys and values: for people to read."""
    rows = []
    for entry in fields(recipe):
        value, name = getattr(recipe, entry.name), f"{where}{entry.name}"
        default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
        if is_dataclass(value):
            rows += changed(value, f"{name}.")
        elif isinstance(value, list) and value and is_dataclass(value[0]):
            rows += [row for number, each in enumerate(value) for row in changed(each, f"{name}.{number}.")]
        elif value != default:
            rows.append((name, value))
    return rows
