"""Runs a plan: our folder, whole or not at all, and a report of what became of every tensor beside the weights."""

import json
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from rocket_hf.export.export_files import staged, write_surroundings
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.modeling.strict_config import StrictConfig

from .checkpoint import Checkpoint
from .plan import ConversionPlan, Drop, Rename, make_plan, read_target

SHARD_BYTES = 2**29
# Files that are downloaded of a Hub repository: configuration, tokenizer, weights and pickled heads; no optimizer state,
# no logs, no videos.
SOURCE_FILES = ["*.json", "*.safetensors", "*_checkpoint.pt", "*.model", "*.txt", "*.jinja"]
REPORT = "conversion.json"


@dataclass
class SourcePolicy(ABC):
    """What a family found in a folder."""

    checkpoint: Checkpoint
    config: StrictConfig
    rules: list[Rename | Drop]

    @abstractmethod
    def make_model(self) -> nn.Module: ...

    @abstractmethod
    def write_surroundings(self, folder: Path) -> None:
        """What lies beside the weights."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the weights that the model has, in its order."""
        with torch.device("meta"):
            model = self.make_model()
        return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


@dataclass
class RocketSource(SourcePolicy):
    config: RocketConfig
    processor: RocketProcessor

    def make_model(self) -> nn.Module:
        return RocketForActionPrediction(self.config)

    def write_surroundings(self, folder: Path) -> None:
        write_surroundings(folder, self.config, self.processor)


def write_conversion(
    found: SourcePolicy, destination: Path, dtype: torch.dtype | None, origin: dict[str, Any]
) -> dict[str, Any]:
    """Plans, then writes the folder and returns the report. Memory holds one shard at a time."""
    plan = make_plan(found.checkpoint, found.shapes(), found.rules)
    with staged(destination) as staging:
        dtypes, parameters = write_weights(found, plan, staging, dtype)
        found.config.dtype = dtype or reduce(torch.promote_types, dtypes)  # a mixed checkpoint loads as its widest
        found.write_surroundings(staging)
        report = origin | {
            "tensors": len(plan.moves),
            "parameters": parameters,
            "dtypes": {str(kind).removeprefix("torch."): count for kind, count in dtypes.items()},
            "source_layout_sha256": found.checkpoint.digest(),
            "dropped": plan.dropped,
            "mapped": plan.moves,
        }
        (staging / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    return report


def write_weights(
    found: SourcePolicy, plan: ConversionPlan, folder: Path, dtype: torch.dtype | None
) -> tuple[Counter[torch.dtype], int]:
    shards = split(plan.shapes)
    dtypes: Counter[torch.dtype] = Counter()
    weight_map: dict[str, str] = {}
    size = parameters = 0
    with tqdm(total=len(plan.moves), desc="tensors", unit="", disable=None, leave=False) as bar:
        for number, names in enumerate(shards, start=1):
            file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            tensors = {}
            for name in names:
                tensor = read_target(found.checkpoint, plan, name).to(dtype)
                tensors[name] = tensor.contiguous()
                dtypes[tensor.dtype] += 1
                size, parameters = size + tensor.nbytes, parameters + tensor.numel()
                bar.update()
            save_file(tensors, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return dtypes, parameters


def split(shapes: dict[str, tuple[int, ...]]) -> list[list[str]]:
    """The names in shards of at most SHARD_BYTES, counted in float32; a larger tensor has a shard of its own."""
    shards: list[list[str]] = []
    room = 0
    for name, shape in shapes.items():
        size = 4 * torch.Size(shape).numel()
        if not shards or size > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= size
    return shards
