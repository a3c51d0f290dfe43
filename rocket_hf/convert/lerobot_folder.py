"""What a folder of a lerobot policy says beside its weights: features, chunk, normalization, statistics."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rocket_hf.errors import UserError
from rocket_hf.export import lerobot_pipelines
from rocket_hf.export.lerobot_pipelines import ACTION, IMAGES, STATE
from rocket_hf.modeling.normalization import STATISTICS, Statistics

from .checkpoint import read_json

MODES = {theirs: ours for ours, theirs in lerobot_pipelines.MODES.items()}
NORMALIZER = "normalizer_processor"


@dataclass
class LeRobotFolder:
    config: dict[str, Any]
    statistics: dict[str, Statistics]
    tokenizer_name: str

    @classmethod
    def read(cls, folder: Path, kind: str) -> "LeRobotFolder":
        config = read_json(folder / "config.json")
        if config.get("type") != kind:
            raise UserError(f"config.json is of a policy of type {config.get('type')!r}, this family reads {kind!r}")
        pipeline = read_json(folder / "policy_preprocessor.json")
        steps = {step.get("registry_name"): step for step in pipeline["steps"]}
        if NORMALIZER not in steps:
            raise UserError(f"policy_preprocessor.json has no step {NORMALIZER}")
        tokenizer = steps.get("tokenizer_processor", {}).get("config", {}).get("tokenizer_name", "")
        return cls(config, read_statistics(folder, steps[NORMALIZER]), tokenizer)

    @property
    def cameras(self) -> list[str]:
        """The names of the cameras in lerobot's order, without its prefix."""
        features = self.config["input_features"].items()
        return [name.removeprefix(IMAGES) for name, feature in features if feature["type"] == "VISUAL"]

    def dim(self, part: str) -> int:
        features, name = {
            "state": (self.config["input_features"], STATE),
            "action": (self.config["output_features"], ACTION),
        }[part]
        if name not in features:
            raise UserError(f"config.json has no feature {name}")
        return features[name]["shape"][0]

    def mode(self, part: str) -> str:
        mapping = self.config["normalization_mapping"]
        mode = mapping[part.upper()]
        if mode not in MODES:
            raise UserError(f"the normalization {mode} of the {part} is not supported; known: {', '.join(MODES)}")
        return MODES[mode]

    def robot(self) -> dict[str, Any]:
        """The part of a RocketConfig that is the robot's."""
        return {
            "cameras": self.cameras,
            "state_dim": self.dim("state"),
            "action_dim": self.dim("action"),
            "chunk_size": self.config["chunk_size"],
            "state_normalization": self.mode("state"),
            "action_normalization": self.mode("action"),
        }

    def tokenizer(self, chosen: str | None) -> PreTrainedTokenizerBase:
        name = chosen or self.tokenizer_name
        if not name:
            raise UserError("policy_preprocessor.json names no tokenizer: pass --tokenizer with a folder or a Hub id")
        try:
            return AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise UserError(
                f"the tokenizer {name} cannot be loaded: pass --tokenizer with a folder or a Hub id"
            ) from error


def read_statistics(folder: Path, step: dict[str, Any]) -> dict[str, Statistics]:
    """The statistics that our normalizers can read, from the state file of lerobot's normalizer."""
    if "state_file" not in step:
        return {}
    path = folder / step["state_file"]
    if not path.exists():
        raise UserError(f"{path.name} is missing in {folder}")
    tensors, kept = load_file(path), {key for keys in STATISTICS.values() for key in keys}
    found: dict[str, Statistics] = {}
    for part, feature in (("state", STATE), ("action", ACTION)):
        values = {key: tensors[name].flatten().tolist() for key in kept if (name := f"{feature}.{key}") in tensors}
        if values:
            found[part] = values
    return found
