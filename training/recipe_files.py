"""Reading recipes from YAML files and from `--set`, with a check of every key and type; and writing them.

A file may begin with `like: NAME`, the recipe that it modifies. A recipe with a `rocket2` section is a `Rocket2Recipe`,
every other one is a `VLARecipe`.
"""

import math
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from rocket_hf.errors import UserError
from rocket_hf.files import expand_user, write_text
from rocket_hf.modeling.strict_config import suggest_name

from .recipe import BaseRecipe, Rocket2Recipe, VLARecipe

RECIPES_FOLDER = Path(__file__).parent / "recipes"

# Former names of recipe keys and their replacements. An entry also renames the keys below it.
RETIRED_KEYS = {
    "goals": "rocket2",
    "rocket2.own_goals": "rocket2.same_episode_goals",
    "run.most_skipped": "run.max_skipped_steps",
    "data.augmentation.colour_only": "data.augmentation.color_only",
}


def read_recipe(name: str, changes: Sequence[str] = (), literal_changes: Mapping[str, str] | None = None) -> BaseRecipe:
    """Read a recipe by its name or the path of its file, with changes such as `optimizer.lr=1e-4`.

    The values of `changes` are YAML. `literal_changes` are strings by key, such as the path of a dataset, in which YAML
    would read ` #` as a comment and 123 as a number; `changes` override them.
    """
    values = read_recipe_values(name)
    for key, text in (literal_changes or {}).items():
        set_value(values, key, text)
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise UserError(f"--set takes KEY=VALUE, for instance --set optimizer.lr=1e-4, got {change!r}")
        check_not_retired(key, "--set")
        try:
            set_value(values, key, yaml.safe_load(text))
        except yaml.YAMLError:
            raise UserError(f"--set {change!r}: the value is not valid YAML") from None
    return parse_value(Rocket2Recipe if "rocket2" in values else VLARecipe, values, "")


def read_vla_recipe(name: str, changes: Sequence[str] = ()) -> VLARecipe:
    recipe = read_recipe(name, changes)
    if not isinstance(recipe, VLARecipe):
        raise UserError(f"the recipe {name!r} trains ROCKET-2, but this command needs a VLA recipe: choose another one")
    return recipe


def read_rocket2_recipe(name: str, changes: Sequence[str] = ()) -> Rocket2Recipe:
    recipe = read_recipe(name, changes)
    if not isinstance(recipe, Rocket2Recipe):
        raise UserError(f"the recipe {name!r} has no rocket2 section, so it does not train ROCKET-2: choose rocket2")
    return recipe


def read_run_recipe(path: Path) -> BaseRecipe:
    """Read the recipe that a run wrote into its folder.

    Recipes of version 0.1.0 have retired keys, which get their new names, and in those of ROCKET-2 also the sections of
    VLA policies, which had no effect.
    """
    values = read_yaml_table(path)
    retired = [key for key, _ in dotted_items(values) if current_name(key) != key]
    top = [key for key in retired if key.rpartition(".")[0] not in retired]
    for key in top:
        value = remove_value(values, key)
        if value is not None:
            set_value(values, current_name(key), value)
    if "goals" in top and "rocket2" in values:
        rename_keys(values["rocket2"], "rocket2.")
        values = known_values(Rocket2Recipe, values)
    return parse_value(Rocket2Recipe if "rocket2" in values else VLARecipe, values, "")


def rename_keys(section: dict[str, Any], prefix: str) -> None:
    """Give retired keys of one section their new names."""
    for key in list(section):
        name = current_name(prefix + key)
        if name != prefix + key:
            section[name.removeprefix(prefix)] = section.pop(key)


def known_values(annotation: Any, value: Any) -> Any:
    """Return a value of a recipe without the keys that its class does not have."""
    if is_dataclass(annotation) and isinstance(value, dict):
        hints = get_type_hints(annotation)
        return {key: known_values(hints[key], entry) for key, entry in value.items() if key in hints}
    if get_origin(annotation) is list and isinstance(value, list):
        return [known_values(get_args(annotation)[0], entry) for entry in value]
    return value


def read_recipe_values(name: str, derived: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read the nested values of a recipe file, merged with those of the recipe that it modifies.

    `derived` are the recipes that modify it.
    """
    if name in derived:
        chain = " -> ".join([*derived, name])
        raise UserError(f"the recipe {name} modifies itself by its key like ({chain}): name another recipe there")
    shipped = {path.stem: path for path in RECIPES_FOLDER.glob("*.yaml")}
    path = shipped.get(name) or expand_user(name)
    if not path.is_file():
        raise UserError(f"there is no recipe {name!r}: {suggest_name(name, shipped)}; or give the path of a YAML file")
    values = read_yaml_table(path)
    for key, value in list(dotted_items(values)):
        if value is None and current_name(key) != key:  # as in recipes that runs of version 0.1.0 wrote
            remove_value(values, key)
        else:
            check_not_retired(key, str(path))
    base = values.pop("like", None)
    if base is not None and not isinstance(base, str):
        raise UserError(f"{path}: like must be the name of a recipe, got {base!r}")
    return merge(read_recipe_values(base, (*derived, name)) if base else {}, {"name": path.stem} | values)


def read_yaml_table(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except (OSError, RecursionError, UnicodeDecodeError) as error:  # RecursionError: values nested thousands deep
        raise UserError(f"cannot read the recipe {path}: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must contain keys and values, as the recipes in {RECIPES_FOLDER.name}/ do")
    return values


def dotted_items(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key and value of nested tables, such as those of `optimizer` and `optimizer.lr`."""
    for key, value in values.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from dotted_items(value, f"{prefix}{key}.")


def remove_value(values: dict[str, Any], key: str) -> Any:
    """Remove and return the value of a key of nested tables, such as `optimizer.lr`."""
    *parents, last = key.split(".")
    for parent in parents:
        values = values[parent]
    return values.pop(last)


def check_not_retired(key: str, source: str) -> None:
    name = current_name(key)
    if name != key:
        raise UserError(f"{source}: the recipe key {key} is now called {name}: use the new name")


def current_name(key: str) -> str:
    for old, new in RETIRED_KEYS.items():
        if key == old or key.startswith(f"{old}."):
            return current_name(new + key.removeprefix(old))
    return key


def merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Merge tables key by key; replace all other values."""
    merged = {key: merge(values[key], value) for key, value in changes.items()
              if isinstance(value, dict) and isinstance(values.get(key), dict)}  # fmt: skip
    return values | changes | merged


def set_value(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a key such as `a.b.0.c`; create missing sections and list entries."""
    *parents, last = key.split(".")
    container: Any = values
    for number, part in enumerate(parents):
        following = [*parents, last][number + 1]
        container = child_container(container, part, [] if following.isdecimal() else {}, key)
    if isinstance(container, list):
        child_container(container, last, None, key)
        container[int(last)] = value
    elif isinstance(container, dict):
        container[last] = value
    else:
        raise UserError(f"--set {key}: there is no key {last!r}")


def child_container(container: Any, part: str, default: Any, key: str) -> Any:
    """Return the value at `part` of a table or list; insert `default` where there is none yet."""
    if isinstance(container, dict):
        if container.get(part) is None:
            container[part] = default
        return container[part]
    if isinstance(container, list) and part.isdecimal() and int(part) <= len(container):
        if int(part) == len(container):
            container.append(default)
        return container[int(part)]
    raise UserError(f"--set {key}: there is no key {part!r}")


# Checks of types


def parse_value(annotation: Any, value: Any, key: str) -> Any:
    """Convert a value to its annotated type; raise a UserError that names the key if it does not fit."""
    if annotation is Any:
        return value
    if is_dataclass(annotation):
        return parse_dataclass(annotation, value, key)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (types.UnionType, Union):
        return parse_union(arguments, value, key)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{key}: invalid value {value!r}; {suggest_name(str(value), map(str, arguments))}")
        return value
    if origin is list:
        if not isinstance(value, list):
            raise UserError(f"{key} must be a list, got {value!r}")
        return [parse_value(arguments[0], entry, f"{key}.{number}") for number, entry in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{key} must be a table, got {value!r}")
        return {str(name): parse_value(arguments[1], entry, f"{key}.{name}") for name, entry in value.items()}
    return parse_scalar(annotation, value, key)


def parse_dataclass(annotation: Any, value: Any, key: str) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"{key or 'a recipe'} must be a table of keys and values, got {value!r}")
    hints, prefix = get_type_hints(annotation), f"{key}." if key else ""
    for name in value:
        if name not in hints:
            raise UserError(f"{annotation.__name__} has no key {prefix}{name}: {suggest_name(str(name), hints)}")
    return annotation(**{name: parse_value(hints[name], entry, prefix + name) for name, entry in value.items()})


def parse_union(annotations: Sequence[Any], value: Any, key: str) -> Any:
    if value is None and type(None) in annotations:
        return None
    choices = [annotation for annotation in annotations if annotation is not type(None)]
    for choice in choices:
        if len(choices) == 1 or isinstance(value, choice):
            return parse_value(choice, value, key)
    raise UserError(f"{key} must be {' or '.join(choice.__name__ for choice in choices)}, got {value!r}")


def parse_scalar(annotation: type, value: Any, key: str) -> Any:
    """Check a number, string or bool. YAML 1.1 reads 1e-4 as a string and 1 as an integer; both are valid floats."""
    if annotation is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            value = float(value)
        except ValueError:
            raise UserError(f"{key} must be a number, got {value!r}") from None
    if annotation is float and isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key} must be a finite number, got {value!r}")
    if not isinstance(value, annotation) or (isinstance(value, bool) and annotation is not bool):
        raise UserError(f"{key} must be {annotation.__name__}, got {value!r}")
    return value


# Recipes as files and as lists of settings


def write_recipe(recipe: BaseRecipe, path: Path) -> None:
    write_text(path, yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True))


def different_keys(one: Any, other: Any, key: str = "") -> list[str]:
    """Return the dotted keys in which two recipes of the same class differ."""
    if is_dataclass(one) and type(one) is type(other):
        return [
            name
            for entry in fields(one)
            for name in different_keys(
                getattr(one, entry.name), getattr(other, entry.name), f"{key}.{entry.name}".lstrip(".")
            )
        ]
    return [] if one == other else [key]


def changed_settings(recipe: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return the dotted key and the value of every setting that differs from its default, for display."""
    rows = []
    for entry in fields(recipe):
        value, name = getattr(recipe, entry.name), f"{prefix}{entry.name}"
        default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
        if is_dataclass(value):
            rows += changed_settings(value, f"{name}.")
        elif isinstance(value, list) and value and is_dataclass(value[0]):
            rows += [row for number, each in enumerate(value) for row in changed_settings(each, f"{name}.{number}.")]
        elif value != default:
            rows.append((name, value))
    return rows
