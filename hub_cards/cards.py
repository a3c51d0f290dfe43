"""Model, adapter and dataset cards, rendered from facts with the templates in this folder, and checks of cards."""

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    EvalResultEntry,
    eval_result_entries_to_yaml,
    metadata_load,
    parse_eval_result_entries,
)
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, PackageLoader, StrictUndefined

from .facts import (
    AdapterFacts,
    Artifact,
    BenchmarkResult,
    CardError,
    Evaluation,
    GeneratedDataset,
    Provenance,
    Rocket2Artifact,
)
from .figures import loss_curves, rollout_strips, success_rates

README = "README.md"
FIGURES = "figures"
EVAL_RESULTS = ".eval_results/rocket_hf.yaml"
ROCKET_PAPER = "2602.17951"
ROCKET2_PAPER = "2503.02505"
PIPELINE = "robotics"
LICENSES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "gpl-3.0", "agpl-3.0", "lgpl-3.0", "mpl-2.0", "openrail", "gemma", "llama2",
    "llama3", "llama3.1", "llama3.2", "llama3.3", "unlicense", "other",
}  # fmt: skip
# Underscores inside of words are plain text in Markdown.
MARKDOWN = re.compile(r"[\\`*\[\]<>|~&]|(?<!\w)_|_(?!\w)")
PLAIN_CODE = re.compile(r"[^`|\s]([^`|\n\r]*[^`|\s])?")


@dataclass
class Card:
    """Text of a repository's README.md and the files that go with it, by their path in the repository."""

    text: str = ""
    files: dict[str, bytes] = field(default_factory=dict)

    def add_figure(self, name: str, description: str, png: bytes) -> str:
        """Add a PNG file to the card's files; return the Markdown that shows it."""
        path = f"{FIGURES}/{name}.png"
        self.files[path] = png
        return f"![{description}]({path})"

    def write(self, folder: Path) -> None:
        for name, content in (self.files | {README: self.text.encode()}).items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)


def model_card(artifact: Artifact, provenance: Provenance) -> Card:
    metadata = policy_metadata(artifact.repo, provenance, vla_tags(artifact)) | {"library_name": "transformers"}
    return policy_card("model_card.md.jinja", metadata, artifact, provenance)


def rocket2_card(artifact: Rocket2Artifact, provenance: Provenance) -> Card:
    tags = ["robotics", "rocket2", "visual-goals", "imitation-learning", f"arxiv:{ROCKET2_PAPER}"]
    metadata = policy_metadata(artifact.repo, provenance, tags) | {"library_name": "transformers"}
    return policy_card("rocket2_card.md.jinja", metadata, artifact, provenance)


def adapter_card(artifact: Artifact, provenance: Provenance, adapter: AdapterFacts) -> Card:
    metadata = policy_metadata(artifact.repo, provenance, vla_tags(artifact))
    metadata |= {"library_name": "peft", "base_model": adapter.base.id, "base_model_relation": "adapter"}
    metadata["tags"] = ["lora", *metadata["tags"]]
    return policy_card("adapter_card.md.jinja", metadata, artifact, provenance, adapter=adapter)


def dataset_card(dataset: GeneratedDataset) -> str:
    metadata = {
        "license": dataset.license,
        "task_categories": ["robotics"],
        "tags": ["LeRobot", "robotics", "simulation"],
        "configs": [{"config_name": "default", "data_files": "data/*/*.parquet"}],
    }
    return render("dataset_card.md.jinja", metadata, dataset=dataset)


def policy_card(
    template: str, metadata: dict[str, Any], artifact: Artifact | Rocket2Artifact, provenance: Provenance, **facts: Any
) -> Card:
    card = Card()
    if provenance.benchmark_results:
        card.files[EVAL_RESULTS] = benchmark_yaml(provenance.benchmark_results, artifact.repo).encode()
    helpers = {
        "add_figure": card.add_figure,
        "loss_curves": loss_curves,
        "success_rates": success_rates,
        "rollout_strips": rollout_strips,
    }
    card.text = render(template, metadata, helpers, artifact=artifact, provenance=provenance, **facts)
    return card


def vla_tags(artifact: Artifact) -> list[str]:
    return ["robotics", "vla", "lerobot", "rocket", artifact.backbone, f"arxiv:{ROCKET_PAPER}"]


def policy_metadata(repo: str, provenance: Provenance, tags: list[str]) -> dict[str, Any]:
    metadata: dict[str, Any] = {"license": provenance.license, "pipeline_tag": PIPELINE}
    if provenance.base_model is not None:
        metadata["base_model"] = provenance.base_model.id
    metadata["tags"] = tags
    if provenance.datasets:
        metadata["datasets"] = [dataset.id for dataset in provenance.datasets]
    if provenance.evaluations:
        results = [model_index_result(entry) for entry in provenance.evaluations]
        metadata["model-index"] = [{"name": repo.split("/")[-1], "results": results}]
    return metadata


def model_index_result(entry: Evaluation) -> dict[str, Any]:
    """Return one row of the Hub's evaluation table in the card's metadata."""
    return {
        "task": {"type": "robotics"},
        "dataset": {"name": entry.suite, "type": entry.suite.partition(":")[0]},  # without settings
        "metrics": [{"type": "success_rate", "name": "success rate", "value": round(entry.rate, 4)}],
    }


def benchmark_yaml(results: list[BenchmarkResult], repo: str) -> str:
    """Return the content of `.eval_results/*.yaml`, which the Hub adds to the leaderboards of benchmark datasets.

    Values are success rates in percent.
    """
    entries = [
        EvalResultEntry(
            dataset_id=result.dataset_id,
            task_id=result.task_id,
            value=round(100 * result.evaluation.rate, 2),
            source_url=f"https://huggingface.co/{repo}",
            source_name="Model card",
            notes=benchmark_notes(result.evaluation),
        )
        for result in results
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)


def benchmark_notes(entry: Evaluation) -> str:
    low, high = (100 * end for end in entry.interval)
    return (
        f"success rate in %: {entry.successes} of {entry.episodes} episodes, "
        f"95 % interval {low:.1f} - {high:.1f}, evaluated with `rocket-hf eval`"
    )


# Templates, which escape text from datasets and users, such as names of cameras and tasks


def markdown(value: Any) -> str:
    """Return a value as text on one line, in which no character is Markdown or HTML."""
    return MARKDOWN.sub(lambda match: f"\\{match[0]}", " ".join(str(value).split()))


def code(value: Any) -> str:
    """Return a value as code on one line, also for cells of tables."""
    text = str(value)
    if PLAIN_CODE.fullmatch(text):
        return f"`{text}`"
    # Backticks cannot quote each other, and a bar ends the cell of a table, so these are written as character codes.
    codes = (c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in " ".join(text.split()))
    return f"<code>{''.join(codes)}</code>"


def python(value: str) -> str:
    """Return a string literal of Python, on one line."""
    return json.dumps(value, ensure_ascii=False)


def one_line(value: str) -> str:
    return " ".join(value.split())


ENVIRONMENT = Environment(
    loader=PackageLoader("rocket_hf.hub_cards", "."),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
ENVIRONMENT.filters |= {"markdown": markdown, "code": code, "python": python, "one_line": one_line}


def render(template: str, metadata: dict[str, Any], helpers: dict[str, Any] | None = None, **facts: Any) -> str:
    for name, value in facts.items():
        require_finite(value, name)
    front_matter = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    papers = {"rocket_paper": ROCKET_PAPER, "rocket2_paper": ROCKET2_PAPER}
    return ENVIRONMENT.get_template(template).render(metadata=front_matter, **papers, **(helpers or {}), **facts)


def require_finite(value: Any, name: str) -> None:
    """Raise CardError if a number in `value`, at any depth, is not finite; `name` is the path of `value`."""
    if isinstance(value, float) and not math.isfinite(value):
        raise CardError(f"{name} is {value}, but cards may contain finite numbers only: publish an earlier checkpoint")
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, dict):
        for key, inner in value.items():
            require_finite(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            require_finite(inner, name)


# Checks of a card's metadata and of `.eval_results/`, without a request to the Hub


def check_card(path: Path, requires_base: bool) -> None:
    """Check that the card has the metadata that the Hub and its users need."""
    try:
        values = metadata_load(path) or {}
    except (ValueError, yaml.YAMLError) as error:
        raise CardError(f"the metadata of {path.name} is not valid YAML: {' '.join(str(error).split())}") from None
    for name, (is_valid, expected) in CARD_METADATA.items():
        is_optional = name == "base_model" and not requires_base and name not in values
        if not (is_optional or is_valid(values.get(name))):
            raise CardError(f"the card needs {name}: {expected}, got {values.get(name)!r}")
    if values["license"] == "other" and not values.get("license_name"):
        raise CardError("the card has license: other, so it needs a license_name: add it to the card's metadata")
    if not all(math.isfinite(number) for number in numbers(values)):
        raise CardError("the card contains a metric that is not a finite number: remove it")
    if "more information needed" in path.read_text(encoding="utf-8").lower():
        raise CardError('the card contains "more information needed": add the information, or remove the section')


def check_eval_results(path: Path) -> None:
    """Check `.eval_results/*.yaml`, if there is one, with the Hub's own parser."""
    if not path.is_file():
        return
    try:
        entries = parse_eval_result_entries(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (KeyError, TypeError, AttributeError, ValueError, yaml.YAMLError) as error:
        raise CardError(f"{EVAL_RESULTS} is not in the Hub's format ({error!r}): publish the policy again") from error
    for entry in entries:
        if not is_repo_id(entry.dataset_id) or not math.isfinite(entry.value):
            raise CardError(
                f"{EVAL_RESULTS} needs a Hub dataset id and a finite value, got {entry.dataset_id!r}, {entry.value}"
            )


def is_repo_id(value: Any) -> bool:
    try:
        validate_repo_id(value)
    except HFValidationError:
        return False
    return "/" in value


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
