"""Reader for the files of a lerobot policy besides its weights: features, action chunk, normalization, statistics."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rocket_hf.checkpoint_files import json_value, open_safetensors, read_json, read_json_object
from rocket_hf.errors import UserError
from rocket_hf.export.policy_folder import ACTION, IMAGES, LEROBOT_MODES, STATE
from rocket_hf.foreign_code import check_file_names
from rocket_hf.modeling.normalization import STATISTICS, Statistics
from rocket_hf.tokenizer import load_tokenizer

MODES = {lerobot_mode: mode for mode, lerobot_mode in LEROBOT_MODES.items()}
NORMALIZER = "normalizer_processor"
# lerobot's processor steps that complete a prompt, and how they treat the task (see `PromptTemplate`).
TASK_TEXTS = {
    "pi0_new_line_processor": "unchanged",
    "smolvla_new_line_processor": "unchanged",
    "pi05_prepare_state_tokenizer_processor_step": "cleaned",
}
INTEGERS = ("tokenizer_max_length", "num_inference_steps", "num_steps", "self_attn_every_n_layers")


@dataclass
class LeRobotFolder:
    """Configuration, normalization statistics, tokenizer name and treatment of tasks of a lerobot policy."""

    config: dict[str, Any]
    statistics: dict[str, Statistics]
    tokenizer_name: str
    task_text: str

    @classmethod
    def read(cls, folder: Path, policy_type: str) -> "LeRobotFolder":
        path = folder / "config.json"
        config = read_json_object(path)
        if json_value(config, "type", path) != policy_type:
            raise UserError(
                f"{path} describes a policy of type {config['type']!r}, but this family reads {policy_type!r}: "
                "choose another FAMILY"
            )
        check_config(config, path)
        pipeline = folder / "policy_preprocessor.json"
        content = read_json(pipeline)
        check_file_names(pipeline, content)
        steps = read_steps(content, pipeline)
        if NORMALIZER not in steps:
            raise UserError(f"{pipeline} has no step {NORMALIZER}: save the policy again with a newer lerobot")
        tokenizer = steps.get("tokenizer_processor", {}).get("config", {}).get("tokenizer_name") or ""
        if not isinstance(tokenizer, str):
            raise UserError(f"{pipeline} has {tokenizer!r} as tokenizer_name, expected a name: pass --tokenizer")
        task_texts = [text for name, text in TASK_TEXTS.items() if name in steps]
        if not task_texts:
            raise UserError(
                f"{pipeline} has none of the steps {', '.join(TASK_TEXTS)}, so the form of its prompts is unknown: "
                "save the policy again with a newer lerobot"
            )
        return cls(config, read_statistics(folder, steps[NORMALIZER]), tokenizer, task_texts[0])

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
        shape = features[name]["shape"]
        if len(shape) != 1 or not isinstance(shape[0], int):
            raise UserError(f"config.json has the shape {shape} for the feature {name}, expected one integer")
        return shape[0]

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


def check_config(config: dict[str, Any], path: Path) -> None:
    """Raise UserError if config.json lacks a key that this package reads, or has a value of another type."""
    json_value(config, "chunk_size", path, int)
    for part in (mapping := json_value(config, "normalization_mapping", path, dict)):
        json_value(mapping, part, path, str)
    for key in ("input_features", "output_features"):
        features = json_value(config, key, path, dict)
        for name in features:
            feature = json_value(features, name, path, dict)
            json_value(feature, "type", path, str)
            json_value(feature, "shape", path, list)
    for key in INTEGERS:
        if key in config:
            json_value(config, key, path, int)


def read_steps(content: Any, path: Path) -> dict[str, dict[str, Any]]:
    """Return the steps of a processor pipeline by name."""
    steps: dict[str, dict[str, Any]] = {}
    for step in json_value(content, "steps", path, list):
        name = json_value(step, "registry_name", path, str)
        if "config" in step:
            json_value(step, "config", path, dict)
        if "state_file" in step:
            json_value(step, "state_file", path, str)
        steps[name] = step
    return steps


def read_statistics(folder: Path, step: dict[str, Any]) -> dict[str, Statistics]:
    """Read the statistics that this package's normalizers use from the state file of lerobot's normalizer step."""
    if "state_file" not in step:
        return {}
    keys = [key for keys in STATISTICS.values() for key in keys]  # in a fixed order, so that the output is as well
    statistics: dict[str, Statistics] = {}
    with open_safetensors(folder / step["state_file"]) as file:
        stored = set(file.keys())
        for part, feature in (("state", STATE), ("action", ACTION)):
            names = {key: name for key in keys if (name := f"{feature}.{key}") in stored}
            if names:
                statistics[part] = {key: file.get_tensor(name).flatten().tolist() for key, name in names.items()}
    return statistics
