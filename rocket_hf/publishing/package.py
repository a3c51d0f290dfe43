"""A trained model to the Hub, or to a folder that anyone can load: weights, configuration, processor, code, card.

`publish` builds the whole repository in a temporary folder, checks it, and sends it in one commit.
"""

from pathlib import Path

import torch

from rocket_hf.errors import UserError
from rocket_hf.export.export_files import staged, write_surroundings
from rocket_hf.export.self_test import in_dtype, record_self_test
from rocket_hf.hub_cards.cards import model_card
from rocket_hf.hub_cards.facts import Provenance
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.modeling.self_test import FILE as SELF_TEST

from .card_facts import describe
from .check import README, check_policy, refuse_links
from .upload import Published, send

SHARD = "5GB"


def publish(
    model: RocketForActionPrediction,
    processor: RocketProcessor,
    repo: str,
    provenance: Provenance,
    *,
    private: bool = False,
    tag: str | None = None,
    dtype: torch.dtype | None = None,
    shard: str = SHARD,
    token: str | None = None,
) -> Published:
    """To `repo` on the Hub, in one commit that is verified and then tagged. An unchanged policy makes no commit."""

    def fill(folder: Path) -> None:
        build(model, processor, folder, provenance, repo, tag, dtype, shard)

    return send(fill, repo, private, tag, token)


def publish_to_folder(
    model: RocketForActionPrediction,
    processor: RocketProcessor,
    folder: str | Path,
    provenance: Provenance,
    *,
    repo: str | None = None,
    tag: str | None = None,
    dtype: torch.dtype | None = None,
    shard: str = SHARD,
) -> Path:
    """The same files to a new folder, whole or not at all; the card speaks of `repo`."""
    with staged(folder) as staging:
        build(model, processor, staging, provenance, repo or f"you/{Path(folder).name}", tag, dtype, shard)
    return Path(folder)


def build(
    model: RocketForActionPrediction,
    processor: RocketProcessor,
    folder: Path,
    provenance: Provenance,
    repo: str,
    tag: str | None,
    dtype: torch.dtype | None,
    shard: str,
) -> None:
    """Everything that a repository holds, checked."""
    if any(".lora_" in name for name, _ in model.named_parameters()):
        raise UserError("this model still has its LoRA layers: merge them first, with merge_and_unload()")
    trained = model.for_inference()
    policy = in_dtype(trained, dtype)
    policy.save_pretrained(folder, max_shard_size=shard)
    write_surroundings(folder, policy.config, processor)
    test = record_self_test(trained, policy, processor)
    test.write(folder / SELF_TEST)
    artifact = describe(policy, processor, repo, tag or "main", test)
    (folder / README).write_text(model_card(artifact, provenance), encoding="utf-8")
    refuse_links(folder)
    check_policy(folder)
