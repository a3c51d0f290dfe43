"""Reader for the files of a lerobot policy besides its weights: features, action chunk, normalization, statistics."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rocket_hf.checkpoint_files import json_value, open_safetensors, read_json
from rocket_hf.errors import UserError
from rocket_hf.export import lerobot_pipelines
from rocket_hf.export.lerobot_pipelines import ACTION, IMAGES, STATE
from rocket_hf.modeling.normalization import STATISTICS, Statistics

MODES = {lerobot_mode: mode for mode, lerobot_mode in lerobot_pipelines.MODES.items()}
NORMALIZER = "normalizer_processor"
CONFIG_KEYS = ("input_features", "output_features", "normalization_mapping", "chunk_size")


@dataclass
class LeRobotFolder:
    """Configuration, normalization statistics and tokenizer name of a lerobot policy."""

    config: dict[str, Any]
    statistics: dict[str, Statistics]
    tokenizer_name: str

    @classmethod
    def read(cls, folder: Path, policy_type: str) -> "LeRobotFolder":
        path = folder / "config.json"
        config = read_json(path)
        if json_value(config, "type", path) != policy_type:
            raise UserError(
                f"{path} describes a policy of type {config['type']!r}, but this family reads {policy_type!r}: "
                "choose another FAMILY"
            )
        for key in CONFIG_KEYS:
            json_value(config, key, path)
        pipeline = folder / "policy_preprocessor.json"
        steps = {step.get("registry_name"): step for step in json_value(read_json(pipeline), "steps", pipeline)}
        if NORMALIZER not in steps:
            raise UserError(f"{pipeline} has no step {NORMALIZER}: save the policy again with a newer lerobot")
        tokenizer = steps.get("tokenizer_processor", {}).get("config", {}).get("tokenizer_name", "")
        return cls(config, read_statistics(folder, steps[NORMALIZER]), tokenizer)

    @property
    def cameras(self) -> list[str]:
        """Return the names of the cameras in lerobot's order, without its prefix."""
        features = self.config["input_features"].items()
        return [name.removeprefix(IMAGES) for name, feature in features if feature["type"] == "VISUAL"]

    def feature_dim(self, part: str) -> int:
        features, name = {
            "state": (self.config["input_features"], STATE),
            "action": (self.config["output_features"], ACTION),
        }[part]
        if name not in features:
            raise UserError(f"config.json has no feature {name}: the policy cannot be converted")
        return features[name]["shape"][0]

    def normalization_mode(self, part: str) -> str:
        mode = self.config["normalization_mapping"].get(part.upper())
        if mode not in MODES:
            raise UserError(f"The normalization {mode} of the {part} is not supported. Supported: {', '.join(MODES)}")
        return MODES[mode]

    def robot_config(self) -> dict[str, Any]:
        """Return the arguments of RocketConfig that describe the robot."""
        return {
            "cameras": self.cameras,
            "state_dim": self.feature_dim("state"),
            "action_dim": self.feature_dim("action"),
            "chunk_size": self.config["chunk_size"],
            "state_normalization": self.normalization_mode("state"),
            "action_normalization": self.normalization_mode("action"),
        }

    def load_tokenizer(self, name: str | None) -> PreTrainedTokenizerBase:
        name = name or self.tokenizer_name
        if not name:
            raise UserError("policy_preprocessor.json names no tokenizer: pass --tokenizer FOLDER or a Hub id")
        return load_tokenizer(name)


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(
            f"The tokenizer {name} cannot be loaded ({error}): pass --tokenizer FOLDER or a Hub id"
        ) from error


def read_statistics(folder: Path, step: dict[str, Any]) -> dict[str, Statistics]:
    """Read the statistics that this package's normalizers use from the state file of lerobot's normalizer step."""
    if "state_file" not in step:
        return {}
    keys = {key for keys in STATISTICS.values() for key in keys}
    statistics: dict[str, Statistics] = {}
    with open_safetensors(folder / step["state_file"]) as file:
        stored = set(file.keys())
        for part, feature in (("state", STATE), ("action", ACTION)):
            names = {key: name for key in keys if (name := f"{feature}.{key}") in stored}
            if names:
                statistics[part] = {key: file.get_tensor(name).flatten().tolist() for key, name in names.items()}
    return statistics
