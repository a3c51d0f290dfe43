"""Checks of the card's metadata and of `.eval_results/`, without a request to the Hub."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load, parse_eval_result_entries

from rocket_hf.errors import UserError
from rocket_hf.export.policy_kinds import PolicyKind
from rocket_hf.hub import REPO_ID
from rocket_hf.hub_cards.cards import EVAL_RESULTS

PIPELINE = "robotics"
LICENSES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "gpl-3.0", "agpl-3.0", "lgpl-3.0", "mpl-2.0", "openrail", "gemma", "llama2",
    "llama3", "llama3.1", "llama3.2", "llama3.3", "unlicense", "other",
}  # fmt: skip


def check_card(path: Path, kind: PolicyKind) -> None:
    """Check that the card has the metadata that the Hub and its users need."""
    try:
        values = metadata_load(path) or {}
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"the metadata of {path.name} is not valid YAML: {' '.join(str(error).split())}") from None
    for name, (is_valid, expected) in CARD_METADATA.items():
        is_optional = name == "base_model" and not kind.requires_base and name not in values
        if not (is_optional or is_valid(values.get(name))):
            raise UserError(f"the card needs {name}: {expected}, got {values.get(name)!r}")
    if values["license"] == "other" and not values.get("license_name"):
        raise UserError("the card has license: other, so it needs a license_name: add it to the card's metadata")
    if not all(math.isfinite(number) for number in numbers(values)):
        raise UserError("the card contains a metric that is not a finite number: remove it")
    if "more information needed" in path.read_text(encoding="utf-8").lower():
        raise UserError('the card contains "more information needed": add the information, or remove the section')


def check_eval_results(path: Path) -> None:
    """Check `.eval_results/*.yaml`, if there is one, with the Hub's own parser."""
    if not path.is_file():
        return
    try:
        entries = parse_eval_result_entries(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (KeyError, TypeError, AttributeError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{EVAL_RESULTS} is not in the Hub's format ({error!r}): publish the policy again") from error
    for entry in entries:
        if not REPO_ID.fullmatch(str(entry.dataset_id)) or not math.isfinite(entry.value):
            raise UserError(
                f"{EVAL_RESULTS} needs a Hub dataset id and a finite value, got {entry.dataset_id!r}, {entry.value}"
            )


def is_repo_id(value: Any) -> bool:
    return isinstance(value, str) and bool(REPO_ID.fullmatch(value))


def are_repo_ids(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(is_repo_id(name) for name in value))


def are_tags(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(tag, str) for tag in value)


# Metadata key -> (check of its value, description of the allowed values)
CARD_METADATA: dict[str, tuple[Callable[[Any], bool], str]] = {
    "license": (lambda value: value in LICENSES, f"one of {', '.join(sorted(LICENSES))}"),
    "pipeline_tag": (lambda value: value == PIPELINE, PIPELINE),
    "base_model": (is_repo_id, "the Hub id of the model that was trained, OWNER/NAME"),
    "library_name": (lambda value: value in ("transformers", "peft"), "transformers or peft"),
    "datasets": (are_repo_ids, "a list of Hub ids"),
    "tags": (are_tags, "a list of words"),
}


def numbers(value: Any) -> Iterator[float]:
    """Yield the floats in a nested structure of dicts and lists."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from numbers(inner)
    elif isinstance(value, float):
        yield value
