"""lerobot configuration of a rocket_hf policy: the keys of its config.json, and options of lerobot's tools.

transformers and lerobot read the same config.json, so every key of `RocketConfig` is a field here.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig

from rocket_hf.errors import UserError
from rocket_hf.export.policy_folder import IMAGES, LEROBOT_MODES, lerobot_features
from rocket_hf.modeling.configuration_rocket import RocketConfig

# Fields that are keys of RocketConfig.
ROCKET_CONFIG_KEYS = (
    "policy_config", "cameras", "state_dim", "action_dim", "state_names", "action_names", "fps",
    "example_task", "datasets", "chunk_size", "state_normalization", "action_normalization", "clip_normalized",
)  # fmt: skip


@PreTrainedConfig.register_subclass("rocket")
@dataclass
class LeRobotRocketConfig(PreTrainedConfig):
    """Configuration with which lerobot's tools create a policy.

    Without `cameras` it describes a new policy, whose robot is taken from the dataset.
    """

    policy_config: dict[str, Any] | None = None
    cameras: list[str] = field(default_factory=list)
    state_dim: int = 0
    action_dim: int = 0
    state_names: list[str] | None = None
    action_names: list[str] | None = None
    fps: float | None = None
    example_task: str | None = None
    datasets: list[str] | None = None
    chunk_size: int = 50
    state_normalization: str = "mean_std"
    action_normalization: str = "mean_std"
    clip_normalized: bool = False

    # Keys that only transformers reads
    model_type: str = "rocket"
    architectures: list[str] | None = None
    auto_map: dict[str, Any] | None = None
    dtype: str | None = None
    transformers_version: str | None = None

    n_action_steps: int | None = None  # of a chunk, executed before the next prediction (default: all)
    tokenizer: str = "google/paligemma-3b-pt-224"  # Hub id or folder, for a policy without a base policy
    optimizer_lr: float = 2.5e-5
    optimizer_weight_decay: float = 0.01
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 1000
    scheduler_decay_steps: int = 30000
    scheduler_decay_lr: float = 2.5e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cameras:
            inputs, outputs = lerobot_features(self.rocket_config())
            self.input_features, self.output_features = to_policy_features(inputs), to_policy_features(outputs)

    @property
    def action_feature_names(self) -> list[str] | None:
        """Name of each action dimension, by which lerobot-rollout sends the actions to the robot's motors.

        lerobot-train sets it to the names of the dataset.
        """
        return self.action_names

    @action_feature_names.setter
    def action_feature_names(self, names: list[str] | None) -> None:
        self.action_names = names

    def rocket_config(self) -> RocketConfig:
        return RocketConfig(**{name: getattr(self, name) for name in ROCKET_CONFIG_KEYS})

    def set_robot_from_features(self) -> None:
        """Set cameras and dimensions to those of the dataset, which lerobot has written to the features."""
        if self.action_feature is None or self.robot_state_feature is None or not self.image_features:
            raise UserError("a rocket policy needs a dataset with images, observation.state and action")
        self.cameras = [camera_name(key) for key in self.image_features]
        self.state_dim, self.action_dim = self.robot_state_feature.shape[0], self.action_feature.shape[0]

    def copy_rocket_config(self, config: RocketConfig) -> None:
        """Set the fields that are keys of RocketConfig."""
        values = config.to_dict()
        for name in ROCKET_CONFIG_KEYS:
            setattr(self, name, values[name])

    def validate_features(self) -> None:
        """Check the number of executed actions and the action dimensions of the dataset or environment."""
        if self.n_action_steps is not None and not 1 <= self.n_action_steps <= self.chunk_size:
            raise UserError(f"n_action_steps must lie in 1..chunk_size={self.chunk_size}, got {self.n_action_steps}")
        action_dim = self.action_feature.shape[0] if self.action_feature else 0
        if action_dim != self.action_dim:
            raise UserError(
                f"the policy has {self.action_dim} action dimensions, but the dataset or environment has {action_dim}: "
                "train with --policy.type=rocket --policy.pretrained_path=..., which adapts the policy to the robot"
            )

    @property
    def normalization_mapping(self) -> dict[str, NormalizationMode]:
        modes = {"STATE": self.state_normalization, "ACTION": self.action_normalization}
        return {"VISUAL": NormalizationMode.IDENTITY} | {
            part: NormalizationMode(LEROBOT_MODES[mode]) for part, mode in modes.items()
        }

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(
            lr=self.optimizer_lr,
            betas=(0.9, 0.95),
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        return CosineDecayWithWarmupSchedulerConfig(
            num_warmup_steps=self.scheduler_warmup_steps,
            num_decay_steps=self.scheduler_decay_steps,
            peak_lr=self.optimizer_lr,
            decay_lr=self.scheduler_decay_lr,
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write config.json as rocket_hf does, so that transformers can read it too."""
        self.rocket_config().save_pretrained(save_directory)


def to_policy_features(described: dict[str, Any]) -> dict[str, PolicyFeature]:
    """Convert features as described in lerobot's JSON files to lerobot's objects."""
    return {
        name: PolicyFeature(FeatureType(feature["type"]), tuple(feature["shape"]))
        for name, feature in described.items()
    }


def camera_name(key: str) -> str:
    """Return the camera of a dataset key: `observation.images.front` is `front`, `observation.image` is `image`."""
    return key.removeprefix(IMAGES).removeprefix("observation.")
