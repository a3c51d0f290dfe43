"""Tiny policies, and folders with all files of their published repository."""

from pathlib import Path
from typing import Any

import torch

from rocket_hf.hub_cards.facts import Provenance, Source
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.publishing import PolicyPackage, write_to_folder
from rocket_hf.tiny import character_tokenizer, tiny_config, tiny_statistics

from ..modeling.conftest import random_model

PROVENANCE = Provenance(license="apache-2.0", base_model=Source("lerobot/pi0_base"))


def tiny_policy(family: str = "pi0", seed: int = 0, **changes: Any) -> RocketForActionPrediction:
    """Return a policy with an alignment head and random weights."""
    return random_model(tiny_config(family, **changes), seed)


def processor_of(model: RocketForActionPrediction) -> RocketProcessor:
    return RocketProcessor.for_config(
        model.config, character_tokenizer(), tiny_statistics(model.config), max_prompt_length=110
    )


def write_published(
    folder: Path,
    model: RocketForActionPrediction,
    provenance: Provenance = PROVENANCE,
    repo: str | None = None,
    tag: str | None = None,
    **settings: Any,
) -> Path:
    package = PolicyPackage(model, processor_of(model), provenance, **settings)
    return write_to_folder(package, folder, repo=repo, tag=tag)


def predict(model: Any, processor: Any) -> torch.Tensor:
    """Return robot actions for a random observation.

    Weights are copied, because their memory layout changes the last bits.
    """
    for weight in model.parameters():
        weight.data = weight.data.clone()
    generator = torch.Generator().manual_seed(3)
    config = model.config
    images = {
        name: torch.randint(0, 256, (3, 40, 60), generator=generator, dtype=torch.uint8) for name in config.cameras
    }
    inputs = processor(images=images, task="open the drawer", state=torch.linspace(-1, 1, config.state_dim))
    chunk = model.predict_action_chunk(**inputs, generator=torch.Generator().manual_seed(0))
    return processor.unnormalize_actions(chunk)
