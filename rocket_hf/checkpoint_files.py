"""Lazy reader for the tensors of a checkpoint folder: names and shapes first, then one tensor at a time."""

import hashlib
import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import UserError
from .foreign_code import check_file_names

COPY_AGAIN = "download or copy it again"

# Types of JSON values, as error messages name them.
JSON_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "a truth value",
    int: "an integer",
    float: "a number",
}


@dataclass(frozen=True)
class TensorEntry:
    """File, key and shape of one tensor, without its values."""

    file: Path
    key: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None  # [begin, end) if the entry is only some rows of the stored tensor


@dataclass(frozen=True)
class LoraDelta:
    """Low-rank update of a weight: scale * up @ down."""

    down: TensorEntry
    up: TensorEntry
    scale: float


class Checkpoint:
    """Tensors of the selected files of a folder. Pickles are loaded with `weights_only`, so no code is executed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.entries: dict[str, TensorEntry] = {}
        self.deltas: dict[str, LoraDelta] = {}

    def add_weights(self, stem: str = "model") -> None:
        """Add `model.safetensors`, or the shards listed in `model.safetensors.index.json`."""
        index, single = self.folder / f"{stem}.safetensors.index.json", self.folder / f"{stem}.safetensors"
        if index.exists():
            content = read_json(index)
            check_file_names(index, content)
            weight_map: dict[str, str] = json_value(content, "weight_map", index, dict)
            for key in weight_map:
                json_value(weight_map, key, index, str)
            for name in sorted(set(weight_map.values())):
                self.add_safetensors(self.folder / name)
            if missing := sorted(key for key in weight_map if key not in self.entries):
                raise UserError(
                    f"{index} lists the tensor {missing[0]}, which {weight_map[missing[0]]} does not contain: "
                    "download the checkpoint again"
                )
        elif single.exists():
            self.add_safetensors(single)
        else:
            raise UserError(f"{self.folder} contains neither {single.name} nor {index.name}: check the path")

    def add_safetensors(self, path: Path) -> None:
        with open_safetensors(path) as file:
            for key in file.keys():  # noqa: SIM118
                self._add(key, TensorEntry(path, key, tuple(file.get_slice(key).get_shape())))

    def add_pickle(self, path: Path, prefix: str) -> None:
        """Add the tensors of a `.pt` file. `prefix` replaces the `module.` of DistributedDataParallel, if any."""
        for key, tensor in load_pickle(path).items():
            self._add(prefix + key.removeprefix("module."), TensorEntry(path, key, tuple(tensor.shape)))

    def add_lora(self, folder: Path) -> None:
        """Register the low-rank updates of a PEFT adapter; `read` adds them to their weights."""
        path, adapter = folder / "adapter_config.json", Checkpoint(folder)
        settings = read_json(path)
        adapter.add_weights("adapter_model")
        scale = lora_scale(settings, path)
        for name, entry in adapter.entries.items():
            target, is_lora_a, _ = name.removeprefix("base_model.model.").partition(".lora_A.weight")
            if is_lora_a:
                up = adapter.entries.get(name.replace(".lora_A.", ".lora_B."))
                if up is None or f"{target}.weight" not in self.entries:
                    raise UserError(
                        f"The adapter tensor {name} has no lora_B counterpart or no weight in the base model: "
                        "pass the model that the adapter was trained on with --base"
                    )
                self.deltas[f"{target}.weight"] = LoraDelta(entry, up, scale)
            elif ".lora_B.weight" not in name:
                raise UserError(f"The adapter in {folder} has the tensor {name}; only LoRA weights are supported")

    def split(self, name: str, *ends: int) -> None:
        """Replace a tensor by row ranges that end at each of `ends`, named NAME[0:1], NAME[1:3] and so on."""
        whole = self.entries[name]
        if not whole.shape or whole.shape[0] != ends[-1]:
            raise UserError(
                f"{name} has shape {whole.shape}, expected {ends[-1]} rows: the checkpoint is not supported"
            )
        del self.entries[name]
        for begin, end in zip((0, *ends), ends, strict=False):
            part = replace(whole, shape=(end - begin, *whole.shape[1:]), rows=(begin, end))
            self._add(f"{name}[{begin}:{end}]", part)

    def _add(self, name: str, entry: TensorEntry) -> None:
        if name in self.entries:
            raise UserError(
                f"The tensor {name} is in both {self.entries[name].file.name} and {entry.file.name}: remove the "
                f"outdated file from {entry.file.parent}"
            )
        self.entries[name] = entry

    def read(self, name: str) -> Tensor:
        tensor = read_entry(self.entries[name])
        if name not in self.deltas:
            return tensor
        delta = self.deltas[name]
        down, up = read_entry(delta.down).float(), read_entry(delta.up).float()
        update = delta.scale * up.flatten(1) @ down.flatten(1)  # convolution kernels are updated in flattened form
        return (tensor.float() + update.reshape(tensor.shape)).to(tensor.dtype)

    def shape(self, name: str, length: int | None = None) -> tuple[int, ...]:
        """Return the shape of a tensor; raise UserError if it is missing or has not `length` dimensions."""
        if name not in self.entries:
            raise missing_tensor(name)
        return check_length(name, self.entries[name].shape, length)

    def digest(self) -> str:
        """Return a SHA-256 over the names, files and shapes of all tensors, which identifies the layout."""
        rows = [[name, entry.file.name, list(entry.shape)] for name, entry in sorted(self.entries.items())]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def check_length(name: str, shape: tuple[int, ...], length: int | None) -> tuple[int, ...]:
    if length is not None and len(shape) != length:
        raise UserError(f"{name} has shape {shape}, expected {length} dimensions: the checkpoint is not supported")
    return shape


def missing_tensor(name: str) -> UserError:
    return UserError(f"The checkpoint has no tensor {name}: check that it is complete and of the expected kind")


def read_entry(entry: TensorEntry) -> Tensor:
    if entry.file.suffix != ".safetensors":
        tensor = load_pickle(entry.file)[entry.key]
    else:
        with open_safetensors(entry.file) as file:
            tensor = file.get_tensor(entry.key)
    return tensor if entry.rows is None else tensor[slice(*entry.rows)]


def lora_scale(settings: Any, path: Path) -> float:
    """Return the factor of a PEFT adapter's updates; raise UserError for settings that are not implemented."""
    rank, alpha = json_value(settings, "r", path, int), json_value(settings, "lora_alpha", path, int | float)
    for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out"):
        if settings.get(key):
            raise UserError(f"{path} sets {key}, which is not supported: merge the adapter with PEFT first")
    if rank < 1:
        raise UserError(f"{path} sets r={rank}, expected a positive rank: download or copy it again")
    return alpha / rank


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file; report a missing or damaged file as UserError."""
    require_file(path)
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or incomplete ({error}): download or copy it again") from error


def load_pickle(path: Path) -> dict[str, Tensor]:
    """Load a `.pt` file of named tensors, memory-mapped and without executing any code in it."""
    require_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{path} cannot be loaded as tensors only, and no code in it was executed: {reason}. Download it again, "
            "or ask its author for safetensors"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} does not contain a dictionary of tensors: use a state dict saved with torch.save")
    return content


def read_json(path: Path, fix: str = COPY_AGAIN) -> Any:
    """Read a JSON file. The message of a UserError ends with `fix`."""
    require_file(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:  # ValueError: malformed JSON or UTF-8
        raise UserError(f"{path} is not valid JSON ({error}): {fix}") from error


def read_json_object(path: Path, fix: str = COPY_AGAIN) -> dict[str, Any]:
    """Read a JSON file; raise UserError if it contains anything else than an object."""
    content = read_json(path, fix)
    if not isinstance(content, dict):
        raise UserError(f"{path} contains {json_kind(content)}, expected an object: {fix}")
    return content


def json_value(content: Any, key: str, path: Path, kind: Any = object) -> Any:
    """Return `content[key]`; raise UserError if the JSON file at `path` lacks it, or if it is not of type `kind`."""
    if not isinstance(content, dict) or key not in content:
        raise UserError(f"{path} has no key {key!r}: check that the checkpoint is complete and of the expected kind")
    value = content[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        expected = JSON_KINDS.get(kind, "a number")
        raise UserError(f"{path} has {json_kind(value)} for {key!r}, expected {expected}: download or copy it again")
    return value


def json_kind(value: Any) -> str:
    return next((text for kind, text in JSON_KINDS.items() if isinstance(value, kind)), "null")


def require_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path.name} is missing in {path.parent}: check that the checkpoint is complete")
