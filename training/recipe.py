"""Recipes: the typed settings of a training run. `recipe_files.py` reads them from YAML files.

A `VLARecipe` trains a vision-language-action policy, with or without alignment to a 3D vision model; a `Rocket2Recipe`
trains a ROCKET-2 policy. Defaults of VLA recipes are those of ROCKET on LIBERO (arXiv 2602.17951, appendix on
hyper-parameters, and its public code) where it has one.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

TrainingMode = Literal["frozen", "lora", "full"]


# Settings of every recipe


@dataclass
class BaseDatasetConfig:
    """One LeRobot dataset (v3)."""

    id: str = ""  # Hub id with an optional @revision, or a folder


@dataclass
class BaseDataConfig:
    datasets: list[BaseDatasetConfig] = field(default_factory=list)
    validation: float = 0.05  # share of each dataset's episodes (ROCKET-2: of the rooms) held out for validation


@dataclass
class BaseOptimizerConfig:
    """AdamW. The learning rate of the heads is `lr` unless it is given."""

    lr: float = 5e-4
    heads_lr: float | None = None
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float | None = None


@dataclass
class ScheduleConfig:
    """Learning-rate schedule: linear warm-up, then constant, cosine decay, or decay in steps."""

    kind: Literal["constant", "cosine", "step"] = "constant"
    warmup: int = 0  # steps
    final: float = 0.1  # cosine: the final learning rate as a share of the initial one
    until: int | None = None  # cosine: the step that reaches `final`; the last step by default
    at: list[int] = field(default_factory=list)  # step: the steps at which the learning rate is multiplied by `factor`
    factor: float = 0.1


@dataclass
class BaseRunConfig:
    steps: int = 50_000
    batch_size: int = 32  # samples per step, summed over devices and accumulated passes
    device_batch_size: int | None = None  # samples per pass on one device; by default the step's share of the device
    seed: int = 42
    gradient_checkpointing: bool = False
    ema: float | None = None  # decay of a moving average of the trained weights; the average is what is exported
    log_every: int = 10
    save_every: int = 1000
    keep: int = 2  # number of latest checkpoints to keep, in addition to the best one
    validate_every: int = 1000
    validation_samples: int = 256
    max_skipped_steps: int = 10  # consecutive steps with a non-finite loss that stop the run
    trackers: list[str] = field(default_factory=list)  # trackio, wandb, tensorboard


@dataclass
class BaseRecipe:
    name: str = ""
    about: str = ""  # description, with the table that the numbers come from
    policy: str = ""  # Hub id with an optional @revision, or a folder
    data: BaseDataConfig = field(default_factory=BaseDataConfig)
    optimizer: BaseOptimizerConfig = field(default_factory=BaseOptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: BaseRunConfig = field(default_factory=BaseRunConfig)


# Vision-language-action policies


@dataclass
class RobotConfig:
    """Changes of the policy for a new robot. Settings that are not given stay as the policy has them."""

    cameras: list[str] | None = None
    state_dim: int | None = None
    action_dim: int | None = None
    state_names: list[str] | None = None
    action_names: list[str] | None = None
    chunk_size: int | None = None
    state_normalization: str | None = None
    action_normalization: str | None = None


@dataclass
class PartsConfig:
    """Training mode of each part of a policy: image encoder, language model, action expert, and heads (state and action
    projections). A setting for a part that the policy does not have is ignored."""

    vision: TrainingMode = "lora"
    language: TrainingMode = "lora"
    expert: TrainingMode = "lora"
    heads: TrainingMode = "full"


@dataclass
class LoraSettings:
    rank: int = 32
    alpha: int = 16
    dropout: float = 0.0
    init: Literal["gaussian", "kaiming", "pissa", "olora"] = "gaussian"


@dataclass
class AlignmentSettings:
    """The aligned layer pairs (see `AlignmentConfig`) and the weight of the alignment losses."""

    student_layers: list[int] = field(default_factory=list)
    teacher_layers: list[int] = field(default_factory=list)
    projector: Literal["shared", "independent"] = "shared"
    nesting: Literal["none", "increasing", "decreasing", "explicit"] = "none"
    nested_widths: list[int] | None = None
    hidden_width: int | None = None  # by default the width of the teacher's features
    weight: float = 0.5
    schedule: Literal["constant", "linear", "stop"] = "constant"
    until: int | None = None  # step at which a linear schedule reaches zero, or at which alignment stops
    reference_compat: bool = False  # resample the teacher's features as the public ROCKET code does


@dataclass
class TeacherSettings:
    name: str = "facebook/VGGT-1B"  # Hub id or folder
    revision: str | None = None
    resolution: str | int = "camera"  # "camera", "teacher" or a side in pixels
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    compile: bool = False
    caches: list[str] = field(default_factory=list)  # feature cache folders, one per dataset; without, run the teacher


@dataclass
class DatasetConfig(BaseDatasetConfig):
    """One LeRobot dataset (v3) and the mapping from its columns to the policy's inputs."""

    weight: float | None = None  # share of the samples; by default the datasets' numbers of frames
    episodes: list[int] | None = None  # by default all
    cameras: dict[str, str] = field(default_factory=dict)  # policy camera -> dataset column; by default in their order
    state: str = "observation.state"
    action: str = "action"


@dataclass
class AugmentationConfig:
    """Random augmentation of each camera image, before it is resized for the policy. Zeros change nothing."""

    crop_area: float = 1.0  # smallest share of the image area that a crop keeps, at the same aspect ratio
    rotation: float = 0.0  # largest angle in degrees, in either direction
    brightness: float = 0.0  # largest added value, as a share of the pixel range
    contrast: float = 0.0  # factors in 1 +- this
    saturation: float = 0.0
    hue: float = 0.0  # largest rotation of the color circle in turns, in either direction
    color_only: list[str] = field(default_factory=list)  # cameras without crops and rotations, such as wrists


@dataclass
class DataConfig(BaseDataConfig):
    datasets: list[DatasetConfig] = field(default_factory=list)  # type: ignore[assignment]
    streaming: bool = False  # fetch video frames from the Hub during training instead of downloading them first
    in_memory: bool = False  # decode all images before the first step, for small datasets
    workers: int = 4
    prefetch: int = 2  # batches that each worker loads ahead
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)


@dataclass
class OptimizerConfig(BaseOptimizerConfig):
    """AdamW. The learning rates of the heads and of the alignment projector are `lr` unless they are given."""

    projector_lr: float | None = None
    conflicts: Literal["keep", "project"] = "keep"  # project: PCGrad, for comparison; see vla/gradient_projection.py


@dataclass
class RunConfig(BaseRunConfig):
    base_dtype: Literal["float32", "bfloat16"] = "float32"  # dtype of the frozen weights; trained ones are float32
    compile: bool = False
    quantize: bool = False  # QLoRA: frozen linear layers in 4 bits, with bitsandbytes


@dataclass
class AnalysisConfig:
    """Measurements during training. They do not change the run."""

    gradient_agreement_every: int = 0  # steps between measurements of the cosines between loss gradients; 0: never
    parameters: str | None = None  # prefix of the names of these weights; by default the first aligned block


@dataclass
class CostComparison:
    """Training that the dry run compares the cost of this run with."""

    name: str = ""
    models: int = 1
    batch_size: int = 1
    steps: int = 1
    teacher: bool = False  # whether the teacher ran for each of its samples too


@dataclass
class VLARecipe(BaseRecipe):
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    robot: RobotConfig = field(default_factory=RobotConfig)
    parts: PartsConfig = field(default_factory=PartsConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    alignment: AlignmentSettings | None = None
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    compared_with: CostComparison | None = None


# ROCKET-2


@dataclass
class Rocket2Settings:
    """A ROCKET-2 policy and its samples. The weights of the losses are those of its publication."""

    config: dict[str, Any] = field(default_factory=dict)  # `Rocket2Config` of a new policy, if `policy` is not given
    chunk_steps: int = 128  # environment steps of one forward pass
    chunks: int = 1  # consecutive chunks of an episode per optimizer step; each continues the memory of the one before
    goals: int = 5  # largest number of different goal images per sample
    warmup_steps: int = 0  # first optimizer steps, which train only the auxiliary heads, on views without actions
    views_share: float = 0.0  # share of the samples that are views after the warm-up
    same_episode_goals: float = 0.0  # share of the goal images taken from the sample's own episode
    action: float = 0.01  # loss weights; an auxiliary head with weight 0 is not created
    visibility: float = 0.01
    point: float = 0.1
    box: float = 0.1
    keep: list[str] = field(default_factory=list)  # auxiliary heads that the exported policy keeps


@dataclass
class Rocket2Recipe(BaseRecipe):
    """All episodes and columns of a dataset are used, and its images are kept in memory."""

    rocket2: Rocket2Settings = field(default_factory=Rocket2Settings)
