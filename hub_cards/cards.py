"""Cards from facts, through the templates beside this file. A number that is not finite is refused."""

import math
from dataclasses import fields, is_dataclass
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from .facts import Adapter, Artifact, Evaluation, GeneratedDataset, Provenance, Rocket2Artifact
from .figures import inline, loss_curves, success_rates

PAPER = "2602.17951"
GOAL_PAPER = "2503.02505"
ENVIRONMENT = Environment(
    loader=PackageLoader("rocket_hf.hub_cards", "."),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def model_card(artifact: Artifact, provenance: Provenance) -> str:
    metadata = policy_metadata(artifact.repo, provenance, vla_tags(artifact)) | {"library_name": "transformers"}
    return render("model_card.md.jinja", metadata, artifact=artifact, provenance=provenance)


def rocket2_card(artifact: Rocket2Artifact, provenance: Provenance) -> str:
    tags = ["robotics", "rocket2", "visual-goals", "imitation-learning", f"arxiv:{GOAL_PAPER}"]
    metadata = policy_metadata(artifact.repo, provenance, tags) | {"library_name": "transformers"}
    return render("rocket2_card.md.jinja", metadata, artifact=artifact, provenance=provenance)


def adapter_card(artifact: Artifact, provenance: Provenance, adapter: Adapter) -> str:
    metadata = policy_metadata(artifact.repo, provenance, vla_tags(artifact))
    metadata |= {"library_name": "peft", "base_model": adapter.base.id, "base_model_relation": "adapter"}
    metadata["tags"] = ["lora", *metadata["tags"]]
    return render("adapter_card.md.jinja", metadata, artifact=artifact, provenance=provenance, adapter=adapter)


def dataset_card(dataset: GeneratedDataset) -> str:
    metadata = {
        "license": dataset.license,
        "task_categories": ["robotics"],
        "tags": ["LeRobot", "robotics", "simulation"],
        "configs": [{"config_name": "default", "data_files": "data/*/*.parquet"}],
    }
    return render("dataset_card.md.jinja", metadata, dataset=dataset)


def vla_tags(artifact: Artifact) -> list[str]:
    return ["robotics", "vla", "lerobot", "rocket", artifact.backbone, f"arxiv:{PAPER}"]


def policy_metadata(repo: str, provenance: Provenance, tags: list[str]) -> dict[str, Any]:
    metadata: dict[str, Any] = {"license": provenance.license, "pipeline_tag": "robotics"}
    if provenance.base_model is not None:
        metadata["base_model"] = provenance.base_model.id
    metadata["tags"] = tags
    if provenance.datasets:
        metadata["datasets"] = [dataset.id for dataset in provenance.datasets]
    if provenance.evaluations:
        results = [result(entry) for entry in provenance.evaluations]
        metadata["model-index"] = [{"name": repo.split("/")[-1], "results": results}]
    return metadata


def result(entry: Evaluation) -> dict[str, Any]:
    """One line of the Hub's table of evaluations."""
    return {
        "task": {"type": "robotics"},
        "dataset": {"name": entry.suite, "type": entry.suite},
        "metrics": [{"type": "success_rate", "name": "success rate", "value": round(entry.rate, 4)}],
    }


def render(template: str, metadata: dict[str, Any], **facts: Any) -> str:
    for name, value in facts.items():
        require_finite(value, name)
    head = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    helpers = {"loss_curves": loss_curves, "success_rates": success_rates, "inline": inline}
    papers = {"paper": PAPER, "goal_paper": GOAL_PAPER}
    return ENVIRONMENT.get_template(template).render(metadata=head, **helpers, **papers, **facts)


def require_finite(value: Any, name: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}, and a card tells finite numbers alone: publish an earlier checkpoint")
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, dict):
        for key, inner in value.items():
            require_finite(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            require_finite(inner, name)
