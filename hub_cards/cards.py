"""Model, adapter and dataset cards, rendered from facts with the templates in this folder."""

import math
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from .escaping import code, markdown, one_line, python
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
ENVIRONMENT = Environment(
    loader=PackageLoader("rocket_hf.hub_cards", "."),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
ENVIRONMENT.filters |= {"markdown": markdown, "code": code, "python": python, "one_line": one_line}


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
    metadata: dict[str, Any] = {"license": provenance.license, "pipeline_tag": "robotics"}
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
        "dataset": {"name": entry.suite, "type": entry.suite},
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
