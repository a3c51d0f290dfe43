"""Writer for converted policies: the folder with its weights, and a report of what each tensor became."""

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

from rocket_hf.checkpoint_files import Checkpoint
from rocket_hf.errors import UserError
from rocket_hf.export.policy_folder import write_policy_files
from rocket_hf.folder_lock import staged_folder
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.modeling.strict_config import StrictConfig

from .plan import ConversionPlan, Drop, Rename, make_plan, read_target

SHARD_BYTES = 2**29
# Patterns of files that are downloaded from a Hub repository: configuration, tokenizer, weights and pickled heads, but
# no optimizer states, logs or videos.
SOURCE_FILES = ["*.json", "*.safetensors", "*_checkpoint.pt", "*.model", "*.txt", "*.jinja"]
REPORT = "conversion.json"


@dataclass
class SourcePolicy(ABC):
    """Public checkpoint, our configuration for it and the rules that rename its tensors."""

    checkpoint: Checkpoint
    config: StrictConfig
    rules: list[Rename | Drop]

    @abstractmethod
    def make_model(self) -> nn.Module: ...

    @abstractmethod
    def write_policy_files(self, folder: Path) -> None:
        """Write the files of the policy other than its weights."""

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each weight of the model, in the model's order."""
        with torch.device("meta"):
            model = self.make_model()
        return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


@dataclass
class RocketSource(SourcePolicy):
    """Checkpoint of a vision-language-action policy, with its processor."""

    config: RocketConfig
    processor: RocketProcessor

    def make_model(self) -> nn.Module:
        return RocketForActionPrediction(self.config)

    def write_policy_files(self, folder: Path) -> None:
        write_policy_files(folder, self.config, self.processor)


def write_conversion(
    source: SourcePolicy, destination: Path, dtype: torch.dtype | None, origin: dict[str, Any]
) -> dict[str, Any]:
    """Convert `source` to the folder `destination`, atomically and one shard at a time; return the report."""
    plan = make_plan(source.checkpoint, source.weight_shapes(), source.rules)
    with staged_folder(destination) as staging:
        dtypes, parameters = write_weights(source, plan, staging, dtype)
        source.config.dtype = dtype or reduce(torch.promote_types, dtypes)  # mixed checkpoints load as the widest
        source.write_policy_files(staging)
        report = origin | {
            "tensors": len(plan.sources),
            "parameters": parameters,
            "dtypes": {str(name).removeprefix("torch."): count for name, count in dtypes.items()},
            "source_layout_sha256": source.checkpoint.digest(),
            "dropped": plan.dropped,
            "mapped": plan.sources,
        }
        (staging / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    return report


def write_weights(
    source: SourcePolicy, plan: ConversionPlan, folder: Path, dtype: torch.dtype | None
) -> tuple[Counter[torch.dtype], int]:
    """Write the weights in shards; return the number of tensors of each dtype and the number of parameters."""
    shards = split_into_shards(plan.shapes)
    dtypes: Counter[torch.dtype] = Counter()
    weight_map: dict[str, str] = {}
    size = parameters = 0
    with tqdm(total=len(plan.sources), desc="tensors", unit="", disable=None, leave=False) as bar:
        for number, names in enumerate(shards, start=1):
            file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            tensors = {}
            for name in names:
                original = read_target(source.checkpoint, plan, name)
                tensor = original.to(dtype)
                check_weight_is_finite(plan.sources[name][0], original, tensor)
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


def check_weight_is_finite(name: str, original: torch.Tensor, converted: torch.Tensor) -> None:
    if converted.isfinite().all():
        return
    if original.isfinite().all():
        dtype = str(converted.dtype).removeprefix("torch.")
        raise UserError(f"The weight {name} has values beyond the range of {dtype}: convert with --dtype float32")
    raise UserError(f"The weight {name} contains NaN or infinity: download the checkpoint again, or use an earlier one")


def split_into_shards(shapes: dict[str, tuple[int, ...]]) -> list[list[str]]:
    """Split the names into shards of at most SHARD_BYTES in float32. A larger tensor gets its own shard."""
    shards: list[list[str]] = []
    remaining = 0
    for name, shape in shapes.items():
        size = 4 * torch.Size(shape).numel()
        if not shards or size > remaining:
            shards.append([])
            remaining = SHARD_BYTES
        shards[-1].append(name)
        remaining -= size
    return shards
