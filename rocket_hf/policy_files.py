"""Checks of a policy's JSON files before transformers reads them, whose errors would not name the file."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from .checkpoint_files import read_json_object
from .errors import UserError

OBJECT_FILES = ("config.json", "processor_config.json", "tokenizer_config.json", "special_tokens_map.json")
TOKENIZER = "tokenizer.json"


def check_policy_files(folder: Path) -> None:
    """Raise UserError if a JSON file of the policy in `folder` is damaged. Loaders report missing files."""
    for name in OBJECT_FILES:
        if (folder / name).is_file():
            values = read_json_object(folder / name)
            if name == "config.json":
                check_config(folder / name, values)
    if (folder / TOKENIZER).is_file():
        content = read_json_object(folder / TOKENIZER)
        missing = [key for key in ("model", "added_tokens") if key not in content]
        if missing:
            raise UserError(f"{folder / TOKENIZER} has no key {missing[0]!r}: download or export the policy again")
        check_tokenizer(folder / TOKENIZER)


def check_config(path: Path, values: dict[str, Any]) -> None:
    """Check the keys that transformers reads before the configuration checks its own."""
    if not isinstance(values.get("model_type"), str):
        raise UserError(f"{path} has no model_type: download or export the policy again")
    dtype = values.get("dtype")
    if dtype is not None and (not isinstance(dtype, str) or not isinstance(getattr(torch, dtype, None), torch.dtype)):
        raise UserError(f"{path}: dtype must be the name of a torch dtype, such as bfloat16, got {dtype!r}")


def check_tokenizer(path: Path) -> None:
    try:
        Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no other class, whatever is wrong with the file
        raise UserError(f"{path} is not a tokenizer ({error}): download or export the policy again") from error
