"""Errors of finished depth probes, stored until the report is written, so that a killed analysis resumes after them."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rocket_hf.files import create_folder, write_atomically

from .depth_probe import DepthErrors
from .depth_samples import DepthSamples

PREFIX, SUFFIX, VALUES = ".probe-", ".safetensors", "values"


class DepthProgress:
    """Probes stored in the output folder. `dependencies` are the settings and frames that all of them share."""

    def __init__(self, folder: Path, dependencies: Any):
        self.folder, self.dependencies = folder, dependencies

    def probe(self, model: str, run: Callable[[], DepthErrors]) -> DepthErrors:
        """Return the errors of a model, stored or by running its probe. `model` is the fingerprint of its weights."""
        key = sha256(json.dumps([self.dependencies, model], sort_keys=True).encode()).hexdigest()
        path = self.folder / f"{PREFIX}{key}{SUFFIX}"
        errors = read_errors(path)
        if errors is None:
            errors = run()
            create_folder(self.folder)
            write_errors(path, errors)
        return errors

    def remove(self) -> None:
        for path in self.folder.glob(f"{PREFIX}*{SUFFIX}"):
            path.unlink()


def samples_digest(samples: DepthSamples) -> str:
    """Return the SHA-256 of the frames and of their parts in the probe."""
    digest = sha256(json.dumps([samples.cameras, samples.tasks, samples.episodes, samples.parts]).encode())
    for tensor in (samples.images, samples.depth, samples.states):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def write_errors(path: Path, errors: DepthErrors) -> None:
    values = {"layers": errors.layers, "validation_errors": errors.validation_errors, "episodes": errors.episodes}
    tensors = {
        "relative": torch.from_numpy(errors.relative).contiguous(),
        "close": torch.from_numpy(errors.close).contiguous(),
        "predicted": errors.predicted.contiguous(),
    }
    write_atomically(path, lambda temporary: save_file(tensors, temporary, {VALUES: json.dumps(values)}))


def read_errors(path: Path) -> DepthErrors | None:
    """Return stored errors; None if there are none, or the disk has damaged them."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            values = json.loads(file.metadata()[VALUES])
        return DepthErrors(
            **values,
            relative=tensors["relative"].numpy(),
            close=tensors["close"].numpy(),
            predicted=tensors["predicted"],
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
