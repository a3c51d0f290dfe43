"""lerobot's configuration of our policies: the keys of a published config.json, and what lerobot's tools may set.

The files are the same for transformers and for lerobot, so every key of the one is a field here.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig

from rocket_hf.export.lerobot_pipelines import IMAGES, MODES, features
from rocket_hf.modeling.configuration_rocket import RocketConfig

# The fields that are keys of config.json.
OURS = (
    "policy_config", "cameras", "state_dim", "action_dim", "state_names", "action_names", "chunk_size",
    "state_normalization", "action_normalization",
)  # fmt: skip


@PreTrainedConfig.register_subclass("rocket")
@dataclass
class LeRobotRocketConfig(PreTrainedConfig):
    """Without cameras it is a policy that is yet to be made, for the robot of a dataset."""

    policy_config: dict[str, Any] | None = None
    cameras: list[str] = field(default_factory=list)
    state_dim: int = 0
    action_dim: int = 0
    state_names: list[str] | None = None
    action_names: list[str] | None = None
    chunk_size: int = 50
    state_normalization: str = "mean_std"
    action_normalization: str = "mean_std"

    # Written for transformers.
    model_type: str = "rocket"
    architectures: list[str] | None = None
    auto_map: dict[str, Any] | None = None
    dtype: str | None = None
    transformers_version: str | None = None

    n_action_steps: int | None = None  # of a chunk, executed before the policy looks again; None: all
    tokenizer: str = "google/paligemma-3b-pt-224"  # a Hub id or a folder, of a policy made from scratch
    optimizer_lr: float = 2.5e-5
    optimizer_weight_decay: float = 0.01
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 1000
    scheduler_decay_steps: int = 30000
    scheduler_decay_lr: float = 2.5e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cameras:
            inputs, outputs = features(self.rocket_config())
            self.input_features, self.output_features = features_of(inputs), features_of(outputs)

    def rocket_config(self) -> RocketConfig:
        return RocketConfig(**{name: getattr(self, name) for name in OURS})

    def take_robot_from_features(self) -> None:
        """The cameras and dimensions of the dataset, which lerobot has written to the features."""
        if self.action_feature is None or self.robot_state_feature is None or not self.image_features:
            raise ValueError("a rocket policy needs a dataset with pictures, observation.state and action")
        self.cameras = [camera_of(key) for key in self.image_features]
        self.state_dim, self.action_dim = self.robot_state_feature.shape[0], self.action_feature.shape[0]

    def take_policy(self, config: RocketConfig) -> None:
        """What stands in our own configuration of the model."""
        values = config.to_dict()
        for name in OURS:
            setattr(self, name, values[name])

    def validate_features(self) -> None:
        """The actions of the dataset or the environment are those of the policy, and as many can be executed."""
        if self.n_action_steps is not None and not 1 <= self.n_action_steps <= self.chunk_size:
            raise ValueError(f"n_action_steps must lie in 1..{self.chunk_size}, the chunk, got {self.n_action_steps}")
        theirs = self.action_feature.shape[0] if self.action_feature else 0
        if theirs != self.action_dim:
            raise ValueError(
                f"the policy has {self.action_dim} action dimensions, the dataset or environment {theirs}: train with "
                "--policy.type=rocket --policy.pretrained_path=..., which adapts a policy to another robot"
            )

    @property
    def normalization_mapping(self) -> dict[str, NormalizationMode]:
        modes = {"STATE": self.state_normalization, "ACTION": self.action_normalization}
        return {"VISUAL": NormalizationMode.IDENTITY} | {
            part: NormalizationMode(MODES[mode]) for part, mode in modes.items()
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
        """As we publish it, so that transformers reads it too."""
        self.rocket_config().save_pretrained(save_directory)


def features_of(written: dict[str, Any]) -> dict[str, PolicyFeature]:
    return {
        name: PolicyFeature(FeatureType(feature["type"]), tuple(feature["shape"])) for name, feature in written.items()
    }


def camera_of(key: str) -> str:
    """`observation.images.front` is the camera `front`, and `observation.image` the camera `image`."""
    return key.removeprefix(IMAGES).removeprefix("observation.")
