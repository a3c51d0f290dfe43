"""Which policy was evaluated, and what ran it."""

import hashlib
from importlib.metadata import PackageNotFoundError, version

import torch

from ..modeling.modeling_rocket import HEAD, RocketForActionPrediction

PACKAGES = ("rocket-hf", "torch", "transformers", "metaworld", "mujoco", "hf-libero")


def weights_hash(policy: RocketForActionPrediction) -> str:
    """The SHA-256 of a policy's tensors by name, without an alignment head: the same before and after publishing."""
    digest = hashlib.sha256()
    for name, weight in sorted(policy.state_dict().items()):
        if not name.startswith(HEAD):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Of the packages that are installed among those that matter."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
