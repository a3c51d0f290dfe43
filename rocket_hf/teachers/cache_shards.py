"""Shards of a feature cache: safetensors files of consecutive rows, with the cache's fingerprint and checksums.

Reading checks a CRC-32 of each layer of each camera of each row, the smallest parts that are read on their own.
`rocket-hf cache verify` checks a SHA-256 digest of each whole shard.
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
METADATA = "rocket_hf"  # one key only: safetensors writes several keys in arbitrary order


def shard_path(folder: Path, number: int) -> Path:
    return folder / SHARDS / f"{number:05d}.safetensors"


def corrupt_shard_error(path: Path, reason: object) -> UserError:
    return UserError(
        f"{path} is corrupt ({reason}): delete it and run the same `rocket-hf cache build` again; "
        "`rocket-hf cache verify` finds every corrupt shard"
    )


def write_shard(folder: Path, manifest: Manifest, number: int, stored: dict[str, Tensor]) -> None:
    """Write one shard. `stored` are the encoded rows on the CPU: tensors (rows, layers, cameras, ...)."""
    tensors = stored | {"crc32": row_checksums(stored)}
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    assert shapes == manifest.shard_layout(number), shapes
    header = {"cache": manifest.fingerprint, "number": number, "sha256": shard_digest(tensors)}
    content = save(tensors, {METADATA: json.dumps(header, sort_keys=True)})
    write_atomically(shard_path(folder, number), lambda temporary: temporary.write_bytes(content))


def open_shard(folder: Path, manifest: Manifest, number: int) -> dict[str, Tensor]:
    """Return a shard's tensors, memory-mapped, after checking that its header and shapes match the manifest."""
    return open_shard_with_digest(shard_path(folder, number), manifest, number)[0]


def open_shard_with_digest(path: Path, manifest: Manifest, number: int) -> tuple[dict[str, Tensor], str]:
    """Return a shard's tensors and the digest in its header. Raise if the shard belongs to another cache or place."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, safe_open is not a dict
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run the same `rocket-hf cache build` again to complete it") from None
    except (SafetensorError, ValueError, OSError) as error:
        raise corrupt_shard_error(path, error) from None
    if (header.get("cache"), header.get("number")) != (manifest.fingerprint, number):
        raise UserError(
            f"{path} is a shard of another cache or of another position: "
            "delete it and run the same `rocket-hf cache build` again"
        )
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    if shapes != manifest.shard_layout(number):
        raise corrupt_shard_error(path, "its tensors do not match the manifest")
    return tensors, header.get("sha256", "")


def verify_shard(folder: Path, manifest: Manifest, number: int) -> None:
    """Read a whole shard and compare its content with the digest in its header."""
    path = shard_path(folder, number)
    tensors, digest = open_shard_with_digest(path, manifest, number)
    if shard_digest(tensors) != digest:
        raise corrupt_shard_error(path, "its content does not match the digest in its header")


def existing_shards(folder: Path, manifest: Manifest) -> set[int]:
    """Return the numbers of the shard files. A damaged manifest may list many more shards than there can be files."""
    files = [path for path in (folder / SHARDS).glob("*.safetensors") if path.stem.isdecimal() and path.is_file()]
    numbers = {int(path.stem) for path in files if path == shard_path(folder, int(path.stem))}
    return {number for number in numbers if number < manifest.shards}


def finished_shards(folder: Path, manifest: Manifest) -> set[int]:
    """Return the numbers of the shards that exist. Raise on a foreign shard instead of overwriting it."""
    finished = existing_shards(folder, manifest)
    for number in finished:
        open_shard(folder, manifest, number)
    return finished


def view_as_bytes(tensor: Tensor) -> np.ndarray:
    """Return a view (rows, layers, cameras, bytes) of an encoded tensor."""
    return tensor.flatten(3).view(torch.uint8).numpy()


def row_checksums(stored: dict[str, Tensor]) -> Tensor:
    """Return CRC-32 checksums (rows, layers, cameras) over the bytes of all tensors, in the order of their names."""
    views = [view_as_bytes(stored[name]) for name in sorted(stored)]
    sums = torch.zeros(views[0].shape[:3], dtype=CHECKSUM)
    for position in np.ndindex(*sums.shape):
        sums[position] = checksum([view[position] for view in views])
    return sums


def checksum(parts: list[np.ndarray]) -> int:
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def shard_digest(tensors: dict[str, Tensor]) -> str:
    digest = sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().reshape(-1).data)
    return digest.hexdigest()
