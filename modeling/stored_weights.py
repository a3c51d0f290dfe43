"""Names and shapes of the weights in safetensors files, of a folder or a Hub repository, without their values."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open

from .errors import UserError

Shapes = dict[str, tuple[int, ...]]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Arguments of `from_pretrained` that say where files of a Hub repository are.
HUB_ARGUMENTS = ("revision", "cache_dir", "token", "local_files_only", "force_download", "subfolder")


def read_stored_shapes(source: str | os.PathLike, kwargs: Mapping[str, Any]) -> Shapes | None:
    """Return the shape of each weight by name; None if the source has no safetensors with the usual names.

    Args:
        source: Folder or Hub repository.
        kwargs: Arguments of `from_pretrained`.
    """
    if kwargs.get("variant"):
        return None  # the names of the files contain the variant
    single = find_file(source, WEIGHTS, kwargs)
    if single is not None:
        return read_shapes(single)
    index = find_file(source, INDEX, kwargs)
    if index is None:
        return None
    files = [find_file(source, name, kwargs) for name in shard_names(index)]
    shapes: Shapes = {}
    for file in files:
        if file is None:
            return None  # transformers reports the missing shard
        shapes |= read_shapes(file)
    return shapes


def find_file(source: str | os.PathLike, name: str, kwargs: Mapping[str, Any]) -> Path | None:
    """Return the local path of a file, downloaded if necessary; None if it cannot be found or downloaded."""
    if Path(source).is_dir():
        path = Path(source) / (kwargs.get("subfolder") or "") / name
        return path if path.is_file() else None
    arguments = {key: kwargs[key] for key in HUB_ARGUMENTS if kwargs.get(key)}
    try:
        return Path(hf_hub_download(str(source), name, **arguments))
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError):
        return None  # transformers reports repositories that do not exist or cannot be reached


def read_json_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): download or publish it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} contains no JSON object: download or publish it again")
    return values


def shard_names(index: Path) -> list[str]:
    """Return the names of the shards that an index lists; raise `UserError` if one is not in its folder."""
    try:
        names = sorted(set(read_json_object(index)["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is not a readable index of weights ({error}): download the policy again") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index} names the file {name!r}, which is not in its folder: download the policy again")
    return names


def read_shapes(path: Path) -> Shapes:
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"the weights {path} cannot be read ({error}): download or export them again") from error
