"""The shards of a feature cache: safetensors files of consecutive rows that tell their place and check themselves.

A CRC-32 for each layer of each camera of each row, the parts that are read on their own, is checked when they are read;
a digest of the whole shard by `rocket-hf cache verify`.
"""

import json
import zlib
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rocket_hf.errors import UserError
from rocket_hf.files import write_atomically

from .cache_manifest import CHECKSUM, Manifest

SHARDS = "shards"
METADATA = "rocket_hf"  # a single key: safetensors writes several in any order


def shard_path(folder: Path, number: int) -> Path:
    return folder / SHARDS / f"{number:05d}.safetensors"


def corrupt(path: Path, reason: object) -> ValueError:
    return ValueError(
        f"{path} is corrupt ({reason}): delete it and run the same `rocket-hf cache build` again; "
        "`rocket-hf cache verify` finds every such shard"
    )


def write_shard(folder: Path, manifest: Manifest, number: int, stored: dict[str, Tensor]) -> None:
    """`stored` is what the codec made of the shard's rows, on the CPU: (rows, layers, cameras, ...)."""
    tensors = stored | {"crc32": checksums(stored)}
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    assert shapes == manifest.shard_layout(number), shapes
    stated = {"cache": manifest.fingerprint, "number": number, "sha256": digest(tensors)}
    content = save(tensors, {METADATA: json.dumps(stated, sort_keys=True)})
    write_atomically(shard_path(folder, number), lambda temporary: temporary.write_bytes(content))


def open_shard(folder: Path, manifest: Manifest, number: int) -> dict[str, Tensor]:
    """Its tensors, mapped and not read yet, once its header has told that it is the one looked for."""
    return opened(shard_path(folder, number), manifest, number)[0]


def opened(path: Path, manifest: Manifest, number: int) -> tuple[dict[str, Tensor], str]:
    """The tensors and the digest stated. Every shard is opened here, so a foreign one never gets further."""
    try:
        with safe_open(path, framework="pt") as file:
            stated = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except (SafetensorError, ValueError) as error:
        raise corrupt(path, error) from None
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run the same `rocket-hf cache build` again, it goes on") from None
    if (stated.get("cache"), stated.get("number")) != (manifest.fingerprint, number):
        raise UserError(
            f"{path} is a shard of another cache or in another's place: "
            "delete it and run the same `rocket-hf cache build` again"
        )
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    if shapes != manifest.shard_layout(number):
        raise corrupt(path, "its tensors are not those that the manifest states")
    return tensors, stated.get("sha256", "")


def verify_shard(folder: Path, manifest: Manifest, number: int) -> None:
    """Reads all of it."""
    path = shard_path(folder, number)
    tensors, stated = opened(path, manifest, number)
    if digest(tensors) != stated:
        raise corrupt(path, "its content does not have the digest that it states")


def finished_shards(folder: Path, manifest: Manifest) -> set[int]:
    """Those that are there. One that does not belong there is an error: it might be somebody's."""
    there = {number for number in range(manifest.shards) if shard_path(folder, number).is_file()}
    for number in there:
        open_shard(folder, manifest, number)
    return there


def as_bytes(tensor: Tensor) -> np.ndarray:
    """A view (rows, layers, cameras, bytes)."""
    return tensor.flatten(3).view(torch.uint8).numpy()


def checksums(stored: dict[str, Tensor]) -> Tensor:
    """(rows, layers, cameras), over the bytes of all tensors in the order of their names."""
    views = [as_bytes(stored[name]) for name in sorted(stored)]
    sums = torch.zeros(views[0].shape[:3], dtype=CHECKSUM)
    for position in np.ndindex(*sums.shape):
        sums[position] = checksum([view[position] for view in views])
    return sums


def checksum(parts: list[np.ndarray]) -> int:
    running = 0
    for part in parts:
        running = zlib.crc32(part, running)
    return running


def digest(tensors: dict[str, Tensor]) -> str:
    running = sha256()
    for name in sorted(tensors):
        running.update(tensors[name].contiguous().view(torch.uint8).numpy().reshape(-1).data)
    return running.hexdigest()
