"""Changes of one file: what crashes, bad copies, editors and programs of others do to files."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

VALUES: list[Any] = [
    None, [], {}, "", "text", 0, -1, 1, 2**31, -(2**63), 10**30, 0.5, 1e308, -1e-300, float("nan"), float("inf"), True,
    False, [None], [[]], {"a": []}, [1, "a", None], "../../etc/passwd", "~nouser/x", "a\nb", "\x1b[31mred",
    "\u202e\u0000", "\U0001f600 ünï", "x" * 100_000, ["front", "front"], [[0.0] * 7] * 3, {"type": "constant"},
    "owner/name", "/",
]  # fmt: skip
TEXTS = [
    b"", b"\0", b"{", b"[]", b"{}", b"null", b"3", b'"text"', b"[1, 2", b"\xff\xfe\x00", b"\xef\xbb\xbf{}", b"NaN",
    b"- a\n- b\n", b"a: &x [*x]\n", b"\t- :\n", b"key: !!python/object/apply:os.system [ls]\n",
    b"[" * 50_000, b'{"a":' * 50_000, b"\x7fELF\x02\x01\x01",
    b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
]  # fmt: skip

Mutation = Callable[[Path, Random], str]


def mutate_file(path: Path, draw: Random) -> str:
    """Change a file in one of the ways that fit its type; return what was changed."""
    own = BY_SUFFIX.get(path.suffix, [])
    mutation = draw.choice(own) if own and draw.random() < 0.75 else draw.choice(ANY_FILE)
    return mutation(path, draw)


# All files


def truncate(path: Path, draw: Random) -> str:
    size = draw.randrange(path.stat().st_size + 1)
    os.truncate(path, size)
    return f"truncated to {size} bytes"


def replace_content(path: Path, draw: Random) -> str:
    content = draw.choice(TEXTS)
    path.write_bytes(content)
    return f"replaced by {content[:40]!r}"


def write_noise(path: Path, draw: Random) -> str:
    path.write_bytes(draw.randbytes(draw.choice([1, 8, 100, 5000])))
    return "replaced by random bytes"


def flip_bytes(path: Path, draw: Random) -> str:
    content = bytearray(path.read_bytes())
    # Headers are at the start, footers at the end; both are small compared with the file.
    begin = {"start": 0, "end": max(0, len(content) - 500)}.get(place := draw.choice(["start", "end", "anywhere"]), 0)
    end = min(len(content), 500) if place == "start" else len(content)
    for _ in range(draw.choice([1, 1, 1, 20]) if content else 0):
        content[draw.randrange(begin, end)] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return f"bits flipped, {place}"


def delete(path: Path, draw: Random) -> str:
    path.unlink()
    return "deleted"


def replace_by_folder(path: Path, draw: Random) -> str:
    path.unlink()
    path.mkdir()
    return "replaced by a folder"


def replace_by_link(path: Path, draw: Random) -> str:
    """Links to nothing, to itself and to a device; reading a device without an end would never return."""
    path.unlink()
    target = draw.choice(["nothing", path.name, "/dev/null", ".."])
    path.symlink_to(target)
    return f"replaced by a link to {target}"


def replace_by_pipe(path: Path, draw: Random) -> str:
    path.unlink()
    os.mkfifo(path)
    return "replaced by a named pipe"


def replace_by_other_file(path: Path, draw: Random) -> str:
    others = sorted(other for other in path.parent.iterdir() if other.is_file() and other != path)
    if not others:
        return delete(path, draw)
    other = draw.choice(others)
    shutil.copy(other, path)
    return f"replaced by {other.name}"


# JSON and YAML


def change_value(content: Any, draw: Random) -> tuple[Any, str]:
    """Replace, remove or rename a random value of nested tables and lists."""
    places = [place for place in walk(content) if place]
    if not places or draw.random() < 0.05:
        value = draw.choice(VALUES)
        return value, f"replaced by {value!r:.60}"
    place = draw.choice(places)
    parent = content
    for key in place[:-1]:
        parent = parent[key]
    name = ".".join(map(str, place))
    action = draw.choice(["replace", "replace", "replace", "remove", "add", "scale"])
    if action == "remove":
        del parent[place[-1]]
        return content, f"without {name}"
    if action == "add" and isinstance(parent, dict):
        parent[draw.choice(["unknown", "auto_map", "", "\x1b[2J", "größe"])] = draw.choice(VALUES)
        return content, f"with another key beside {name}"
    old = parent[place[-1]]
    is_number = isinstance(old, int | float) and not isinstance(old, bool)
    value = old * draw.choice([-1, 0, 2, 3, 0.5]) if action == "scale" and is_number else draw.choice(VALUES)
    parent[place[-1]] = value
    return content, f"{name} = {value!r:.60}"


def walk(value: Any, place: tuple = ()) -> list[tuple]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(inner for key, child in items for inner in walk(child, (*place, key)))]


def mutate_json(path: Path, draw: Random) -> str:
    content, change = change_value(json.loads(path.read_text(encoding="utf-8")), draw)
    path.write_text(json.dumps(content), encoding="utf-8")
    return change


def mutate_json_line(path: Path, draw: Random) -> str:
    lines = path.read_text(encoding="utf-8").splitlines() or ["{}"]
    number = draw.randrange(len(lines))
    content, change = change_value(json.loads(lines[number]), draw)
    lines[number] = draw.choice([json.dumps(content), lines[number][:10], "", "[]"])
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"line {number}: {change}"


def mutate_yaml(path: Path, draw: Random) -> str:
    content, change = change_value(yaml.safe_load(path.read_text(encoding="utf-8")), draw)
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return change


def mutate_front_matter(path: Path, draw: Random) -> str:
    text = path.read_text(encoding="utf-8")
    if not text.startswith("---\n"):
        return replace_content(path, draw)
    head, separator, rest = text.removeprefix("---\n").partition("\n---\n")
    content, change = change_value(yaml.safe_load(head), draw)
    path.write_text(f"---\n{yaml.safe_dump(content)}{separator}{rest}", encoding="utf-8")
    return f"front matter: {change}"


# Tables and weights


def mutate_parquet(path: Path, draw: Random) -> str:
    table = pq.read_table(path)
    names = table.column_names
    name = draw.choice(names)
    index = names.index(name)
    action = draw.choice(["drop", "rename", "null", "text", "rows", "repeat", "metadata", "negative"])
    if action == "drop":
        table = table.drop_columns([name])
    elif action == "rename":
        table = table.rename_columns([*names[:index], f"{name}_", *names[index + 1 :]])
    elif action == "rows":
        table = table.slice(0, draw.randrange(len(table) + 1))
    elif action == "repeat":
        table = pa.concat_tables([table, table])
    elif action == "metadata":
        table = table.replace_schema_metadata({"huggingface": draw.choice(["[]", "{", "null"])})
    else:
        table = table.set_column(index, name, replaced_column(table[name], action))
    pq.write_table(table, path)
    return f"column {name}: {action}"


def replaced_column(column: pa.ChunkedArray, action: str) -> pa.Array:
    if action == "null":
        return pa.nulls(len(column), column.type)
    if action == "negative" and pa.types.is_integer(column.type):
        return pa.array([-value - 1 for value in column.to_pylist()], column.type)
    return pa.array(["text"] * len(column))


def mutate_safetensors(path: Path, draw: Random) -> str:
    """Change the header: names, shapes, dtypes, offsets and metadata."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, change = change_value(json.loads(content[8 : 8 + length]), draw)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return f"header: {change}"


def fill_weights(path: Path, draw: Random) -> str:
    """Fill the second half of the weights with one byte; 255 makes them NaN."""
    content, byte = bytearray(path.read_bytes()), draw.choice([0, 127, 255])
    (length,) = struct.unpack("<Q", content[:8])
    middle = 8 + length + (len(content) - 8 - length) // 2
    path.write_bytes(bytes(content[:middle]) + bytes([byte]) * (len(content) - middle))
    return f"second half of the weights filled with {byte}"


ANY_FILE: list[Mutation] = [
    truncate, replace_content, replace_content, write_noise, flip_bytes, delete, replace_by_folder, replace_by_link,
    replace_by_pipe, replace_by_other_file,
]  # fmt: skip
BY_SUFFIX: dict[str, list[Mutation]] = {
    ".json": [mutate_json],
    ".jsonl": [mutate_json_line],
    ".yaml": [mutate_yaml],
    ".md": [mutate_front_matter],
    ".parquet": [mutate_parquet, mutate_parquet, flip_bytes],
    ".safetensors": [mutate_safetensors, fill_weights, flip_bytes],
    ".mp4": [flip_bytes, truncate],
}
