"""A trained model to the Hub, or to a folder that anyone can load: weights, configuration, processor, code, card.

`publish` builds the whole repository in a temporary folder, checks it, and sends it in one commit.
"""

from pathlib import Path

import torch

from .hub_cards.cards import model_card
from .hub_cards.facts import Provenance
from .modeling.modeling_rocket import RocketForActionPrediction
from .modeling.processing_rocket import RocketProcessor
from .modeling.self_test import FILE as SELF_TEST
from .publishing.check import README, check_policy, refuse_links
from .publishing.describe import describe
from .publishing.golden import in_dtype, record_self_test
from .publishing.surroundings import shipped_files, staged, write_surroundings
from .publishing.upload import Published, send

__all__ = [
    "Provenance", "Published", "export_policy", "publish", "publish_to_folder", "shipped_files", "staged",
    "write_surroundings",
]  # fmt: skip

SHARD = "5GB"


def export_policy(model: RocketForActionPrediction, processor: RocketProcessor, folder: str | Path) -> Path:
    """Writes the policy without its alignment head to `folder`, whole or not at all.

    The folder loads with `AutoModel.from_pretrained(folder, trust_remote_code=True)` where this package is missing.
    """
    with staged(folder) as staging:
        policy = model.for_inference()
        policy.save_pretrained(staging)
        write_surroundings(staging, policy.config, processor)
    return Path(folder)


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
        raise ValueError("this model still has its LoRA layers: merge them first, with merge_and_unload()")
    trained = model.for_inference()
    policy = in_dtype(trained, dtype)
    policy.save_pretrained(folder, max_shard_size=shard)
    write_surroundings(folder, policy.config, processor)
    test = record_self_test(trained, policy, processor)
    test.write(folder / SELF_TEST)
    artefact = describe(policy, processor, repo, tag or "main", test)
    (folder / README).write_text(model_card(artefact, provenance), encoding="utf-8")
    refuse_links(folder)
    check_policy(folder)
