"""The tensors of a checkpoint folder: names and shapes are known first, then tensors are read one at a time."""

import hashlib
import json
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rocket_hf.errors import UserError


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies, and what it is without its values."""

    file: Path
    key: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None  # from the first to before the last, where it is a part of a tensor


@dataclass(frozen=True)
class LoraDelta:
    """scale x up x down, to be added to a weight."""

    down: Entry
    up: Entry
    scale: float


class Checkpoint:
    """All tensors of some files of a folder. Nothing in a file is executed: pickles are read as tensors alone."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        self.deltas: dict[str, LoraDelta] = {}

    def add_weights(self, stem: str = "model") -> None:
        """`model.safetensors`, or the shards that `model.safetensors.index.json` names."""
        index, single = self.folder / f"{stem}.safetensors.index.json", self.folder / f"{stem}.safetensors"
        if index.exists():
            listed: dict[str, str] = read_json(index)["weight_map"]
            for name in sorted(set(listed.values())):
                self.add_safetensors(self.folder / name)
            if wrong := sorted(key for key in listed if key not in self.entries):
                raise UserError(f"{index.name} names {wrong[0]}, which {listed[wrong[0]]} does not hold")
        elif single.exists():
            self.add_safetensors(single)
        else:
            raise UserError(f"{self.folder} holds neither {single.name} nor {index.name}")

    def add_safetensors(self, path: Path) -> None:
        if not path.exists():
            raise UserError(f"{path.name} is missing in {path.parent}")
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118
                    self._add(key, Entry(path, key, tuple(file.get_slice(key).get_shape())))
        except SafetensorError as error:
            raise UserError(f"{path.name} is damaged or cut off: {error}") from error

    def add_pickle(self, path: Path, prefix: str) -> None:
        """A `.pt` file of tensors; their names get the prefix and lose the `module.` of distributed training."""
        for key, tensor in load_pickle(path).items():
            self._add(prefix + key.removeprefix("module."), Entry(path, key, tuple(tensor.shape)))

    def add_lora(self, folder: Path) -> None:
        """Low-rank updates of a PEFT adapter, which `read` adds to the weights that they belong to."""
        settings, adapter = read_json(folder / "adapter_config.json"), Checkpoint(folder)
        adapter.add_weights("adapter_model")
        scale = settings["lora_alpha"] / settings["r"]
        for name, entry in adapter.entries.items():
            target, found, _ = name.removeprefix("base_model.model.").partition(".lora_A.weight")
            if found:
                up = adapter.entries.get(name.replace(".lora_A.", ".lora_B."))
                if up is None or f"{target}.weight" not in self.entries:
                    raise UserError(f"{name} of the adapter has no counterpart in the adapter or in the model")
                self.deltas[f"{target}.weight"] = LoraDelta(entry, up, scale)
            elif ".lora_B.weight" not in name:
                raise UserError(f"the adapter has {name}, which is no low-rank update of a weight")

    def split(self, name: str, *ends: int) -> None:
        """A tensor becomes several, of the rows up to each of the ends: NAME[0:1], NAME[1:3] and so on."""
        whole = self.entries[name]
        if not whole.shape or whole.shape[0] != ends[-1]:
            raise UserError(f"{name} has the shape {whole.shape}, it should have {ends[-1]} rows")
        del self.entries[name]
        for begin, end in zip((0, *ends), ends, strict=False):
            part = replace(whole, shape=(end - begin, *whole.shape[1:]), rows=(begin, end))
            self._add(f"{name}[{begin}:{end}]", part)

    def _add(self, name: str, entry: Entry) -> None:
        if name in self.entries:
            raise UserError(f"{name} stands in {self.entries[name].file.name} and in {entry.file.name}")
        self.entries[name] = entry

    def read(self, name: str) -> Tensor:
        tensor = read_entry(self.entries[name])
        if name not in self.deltas:
            return tensor
        delta = self.deltas[name]
        down, up = read_entry(delta.down).float(), read_entry(delta.up).float()
        update = delta.scale * up.flatten(1) @ down.flatten(1)  # a convolution's is of its flattened kernel
        return (tensor.float() + update.reshape(tensor.shape)).to(tensor.dtype)

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self.entries:
            raise UserError(f"the checkpoint lacks the tensor {name}")
        return self.entries[name].shape

    def digest(self) -> str:
        """SHA-256 over the names, files and shapes of all tensors: changes when the layout does."""
        rows = [[name, entry.file.name, list(entry.shape)] for name, entry in sorted(self.entries.items())]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def read_entry(entry: Entry) -> Tensor:
    if entry.file.suffix != ".safetensors":
        tensor = load_pickle(entry.file)[entry.key]
    else:
        with safe_open(entry.file, "pt") as file:
            tensor = file.get_tensor(entry.key)
    return tensor if entry.rows is None else tensor[slice(*entry.rows)]


def load_pickle(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise UserError(f"{path.name} is missing in {path.parent}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"{path.name} is not a file of tensors alone, and nothing in it was executed: {first}"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path.name} does not hold a dictionary of tensors")
    return content


def read_json(path: Path) -> Any:
    if not path.exists():
        raise UserError(f"{path.name} is missing in {path.parent}")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path.name} is not valid JSON: {error}") from error
