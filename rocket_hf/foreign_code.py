"""Check of a folder before anything in it is loaded: it names no foreign code, and no files outside of itself.

transformers and PEFT find classes by entries of JSON files, which may name the code of other repositories. The only
such entries that this package accepts are its own `auto_map`, which names the code files beside the weights.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from .errors import UserError

# Values of `auto_map`: transformers loads these classes from the code files of the policy folder.
ROCKET2_CLASSES = {
    "AutoConfig": "configuration_rocket2.Rocket2Config",
    "AutoModel": "modeling_rocket2.Rocket2ForActionPrediction",
}
MODEL_CLASSES = {
    "AutoConfig": "configuration_rocket.RocketConfig",
    "AutoModel": "modeling_rocket.RocketForActionPrediction",
}
PROCESSOR_CLASSES = {"AutoProcessor": "processing_rocket.RocketProcessor"}
OWN_ENTRIES = {*ROCKET2_CLASSES.items(), *MODEL_CLASSES.items(), *PROCESSOR_CLASSES.items()}

# Keys by which transformers and, for the last two, PEFT find code. PEFT imports the module of the last one.
CODE_KEYS = ("auto_map", "custom_pipelines", "auto_mapping", "megatron_config")
# Files that name other files of their folder, and the keys of the names (or templates of names).
FILE_KEYS = {
    "*.index.json": ("weight_map",),
    "policy_*processor.json": ("state_file",),
    "info.json": ("data_path", "video_path"),
}
UNSAFE_FILE_NAME = re.compile(r"^[/\\~]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)|\0")
KEYS = [*CODE_KEYS, *(key for keys in FILE_KEYS.values() for key in keys)]
ANY_KEY = re.compile("|".join([*KEYS, r"\\u"]).encode())  # a key may be written with escapes


def check_no_foreign_code(folder: Path) -> None:
    """Raise UserError if a JSON file of `folder`, at any depth, names foreign code or a file outside of its folder."""
    check_regular_files(folder)
    for path in json_files(folder):
        values = read_relevant_json(path)
        for key, value in entries(values, CODE_KEYS):
            if foreign := foreign_code(key, value):
                raise UserError(
                    f"{path} names code that does not belong to this package, which is never executed ({key}: "
                    f"{foreign[:200]}): remove {key!r} from the file if you trust the rest of the folder"
                )
        check_file_names(path, values)


def check_files_inside(folder: Path) -> None:
    """Raise UserError if a JSON file of `folder` names a file outside of its folder. Entries for code are ignored.

    For checkpoints of other projects, which name their own code and which this package reads as data only.
    """
    check_regular_files(folder)
    for path in json_files(folder):
        check_file_names(path, read_relevant_json(path))


def check_regular_files(folder: Path) -> None:
    """Raise UserError if a named pipe or a device is in the folder: reading it might never end."""
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            if path.exists() and not path.is_file():
                raise UserError(f"{path} is a named pipe or a device: replace it by a file, or remove it")


def json_files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            if name.lower().endswith(".json"):
                yield Path(parent, name)


def read_relevant_json(path: Path) -> Any:
    """Return the content of a JSON file; None if it has none of the keys, or is damaged, which its reader reports."""
    try:
        content = path.read_bytes()
        return json.loads(content) if ANY_KEY.search(content) else None
    except (OSError, ValueError):
        return None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be read: replace the file") from None


def entries(value: Any, keys: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield each entry of a nested JSON value whose key is one of `keys`."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield from ((key, value[key]) for key in keys if key in value)
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def foreign_code(key: str, value: Any) -> str | None:
    """Return the foreign part of an entry for code, or None if the entry is empty or this package's own."""
    if not value:
        return None
    if key != "auto_map" or not isinstance(value, dict):
        return json.dumps(value)
    foreign = {name: place for name, place in value.items() if not is_own(name, place)}
    return json.dumps(foreign) if foreign else None


def is_own(name: str, place: Any) -> bool:
    return isinstance(place, str) and (name, place) in OWN_ENTRIES


def check_file_names(path: Path, values: Any) -> None:
    """Raise UserError if `values`, the content of the JSON file at `path`, name a file outside of its folder."""
    keys = [key for pattern, keys in FILE_KEYS.items() if fnmatch(path.name, pattern) for key in keys]
    for key, value in entries(values, keys):
        names = value.values() if isinstance(value, dict) else [value]
        for name in names:
            if isinstance(name, str) and UNSAFE_FILE_NAME.search(name):
                raise UserError(
                    f"{path} names a file outside of its folder ({key}: {name[:200]!r}): download or write the "
                    "folder again"
                )
