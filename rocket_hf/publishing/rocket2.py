"""A ROCKET-2 policy to the Hub, or to a folder: weights, configuration, self-test, code and card; no processor.

Its heads of training stay behind, but for those that are named, which people like to see.
"""

from collections.abc import Iterable
from pathlib import Path

import torch

from rocket_hf.export.export_files import staged, write_rocket2_surroundings
from rocket_hf.export.rocket2_self_test import in_dtype, record_rocket2_self_test
from rocket_hf.hub_cards.cards import rocket2_card
from rocket_hf.hub_cards.facts import Provenance, Rocket2Artifact
from rocket_hf.modeling.configuration_rocket2 import INTERACTIONS
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.rocket2_self_test import Rocket2SelfTest
from rocket_hf.modeling.self_test import FILE as SELF_TEST

from .check import README, check_policy, refuse_links
from .upload import Published, send

SHARD = "5GB"


def publish_rocket2(
    model: Rocket2ForActionPrediction,
    repo: str,
    provenance: Provenance,
    *,
    keep: Iterable[str] = (),
    private: bool = False,
    tag: str | None = None,
    dtype: torch.dtype | None = None,
    shard: str = SHARD,
    token: str | None = None,
) -> Published:
    """To `repo` on the Hub, in one commit that is verified and then tagged. An unchanged policy makes no commit."""

    def fill(folder: Path) -> None:
        build_rocket2(model, folder, provenance, repo, keep, tag, dtype, shard)

    return send(fill, repo, private, tag, token)


def publish_rocket2_to_folder(
    model: Rocket2ForActionPrediction,
    folder: str | Path,
    provenance: Provenance,
    *,
    keep: Iterable[str] = (),
    repo: str | None = None,
    tag: str | None = None,
    dtype: torch.dtype | None = None,
    shard: str = SHARD,
) -> Path:
    """The same files to a new folder, whole or not at all; the card speaks of `repo`."""
    with staged(folder) as staging:
        build_rocket2(model, staging, provenance, repo or f"you/{Path(folder).name}", keep, tag, dtype, shard)
    return Path(folder)


def build_rocket2(
    model: Rocket2ForActionPrediction,
    folder: Path,
    provenance: Provenance,
    repo: str,
    keep: Iterable[str],
    tag: str | None,
    dtype: torch.dtype | None,
    shard: str,
) -> None:
    """Everything that a repository holds, checked."""
    trained = model.for_inference(keep)
    policy = in_dtype(trained, dtype)
    policy.save_pretrained(folder, max_shard_size=shard)
    write_rocket2_surroundings(folder, policy.config)
    test = record_rocket2_self_test(trained, policy)
    test.write(folder / SELF_TEST)
    card = rocket2_card(describe_rocket2(policy, repo, tag or "main", test), provenance)
    (folder / README).write_text(card, encoding="utf-8")
    refuse_links(folder)
    check_policy(folder)


def describe_rocket2(
    policy: Rocket2ForActionPrediction, repo: str, revision: str, test: Rocket2SelfTest
) -> Rocket2Artifact:
    config = policy.config
    return Rocket2Artifact(
        repo=repo,
        revision=revision,
        parameters=sum(parameter.numel() for parameter in policy.parameters()),
        dtype=str(policy.dtype).removeprefix("torch."),
        image_size=tuple(config.image_size),
        actions=[(*factor, rest) for factor, rest in zip(config.factors.items(), config.rest_action, strict=True)],
        minecraft=config.action_space == "minecraft",
        interactions={name: number for name, number in INTERACTIONS.items() if number < config.interactions},
        window_steps=config.window_steps,
        heads=list(config.auxiliary_heads),
        versions=test.versions,
        tolerances=test.tolerances,
        effects=test.effects,
    )
