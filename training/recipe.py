"""A recipe: everything that a training run depends on, typed. `recipe_files.py` reads it from YAML files.

Defaults are ROCKET's on LIBERO (arXiv 2602.17951, appendix on hyper-parameters, and its public code) where it has one.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

Training = Literal["frozen", "lora", "full"]


@dataclass
class RobotConfig:
    """What a new robot changes about the policy. Nothing said: as the policy has it."""

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
    """How each part of a policy trains: the image encoder, the language model, the action expert, and the small layers
    at the edges (action and state projections, action heads). A part that the policy does not have may say anything."""

    vision: Training = "lora"
    language: Training = "lora"
    expert: Training = "lora"
    heads: Training = "full"


@dataclass
class LoraSettings:
    rank: int = 32
    alpha: int = 16
    dropout: float = 0.0
    init: Literal["gaussian", "kaiming", "pissa", "olora"] = "gaussian"


@dataclass
class AlignmentRecipe:
    """Which layers are aligned (see `AlignmentConfig`), and how much that counts."""

    student_layers: list[int] = field(default_factory=list)
    teacher_layers: list[int] = field(default_factory=list)
    projector: Literal["shared", "independent"] = "shared"
    nesting: Literal["none", "increasing", "decreasing", "explicit"] = "none"
    nested_widths: list[int] | None = None
    hidden_width: int | None = None  # by default the width of the teacher's features
    weight: float = 0.5
    schedule: Literal["constant", "linear", "stop"] = "constant"
    until: int | None = None  # the step at which a linear schedule reaches zero, or at which alignment stops
    reference_compat: bool = False  # resample the teacher's features as the public ROCKET code does


@dataclass
class GoalRecipe:
    """A ROCKET-2 policy, whose goals are masks in any view. Weights of losses are those of its publication."""

    config: dict[str, Any] = field(default_factory=dict)  # of a new policy (see `Rocket2Config`), where none is given
    chunk_steps: int = 128  # that go through the model at once
    chunks: int = 1  # of the same episodes in one step of the optimizer, each with the memory of those before it
    goals: int = 5  # different pictures of the goal, at most, in one sample
    warmup_steps: int = 0  # of the optimizer, in which the heads learn to see from views alone, before it is cloned
    views_share: float = 0.0  # of the samples that are views afterwards too
    own_goals: float = 0.0  # the share of goals that come from the episode itself; others are seen from elsewhere
    action: float = 0.01  # weights of the losses; a head that weighs nothing is not made
    visibility: float = 0.01
    point: float = 0.1
    box: float = 0.1
    keep: list[str] = field(default_factory=list)  # heads that the exported policy has, for people to see


@dataclass
class TeacherRecipe:
    name: str = "facebook/VGGT-1B"  # Hub id or folder
    revision: str | None = None
    resolution: str | int = "camera"  # "camera", "teacher" or a side in pixels
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    compile: bool = False
    caches: list[str] = field(default_factory=list)  # folders of cached features, one per dataset; else computed live


@dataclass
class DatasetConfig:
    """One LeRobot dataset (v3) and what its columns mean to the policy."""

    id: str = ""  # Hub id with an optional @revision, or a folder
    weight: float | None = None  # its share of the samples; by default the datasets' numbers of frames
    episodes: list[int] | None = None  # by default all
    cameras: dict[str, str] = field(default_factory=dict)  # the policy's camera: the dataset's key; by default in order
    state: str = "observation.state"
    action: str = "action"


@dataclass
class AugmentationConfig:
    """Of each picture on its own, before it is resized for the policy. Zero changes nothing."""

    crop_area: float = 1.0  # the smallest share of the picture that a crop keeps, its aspect ratio kept
    rotation: float = 0.0  # degrees, at most, either way
    brightness: float = 0.0  # at most this much is added, of the range of the pixels
    contrast: float = 0.0  # factors in 1 +- this
    saturation: float = 0.0
    hue: float = 0.0  # turns of the color circle, at most, either way
    color_only: list[str] = field(default_factory=list)  # cameras that are neither cropped nor rotated: wrists


@dataclass
class DataConfig:
    datasets: list[DatasetConfig] = field(default_factory=list)
    validation: float = 0.05  # the share of each dataset's episodes that is held out
    streaming: bool = False  # fetch frames of videos on the Hub while training, instead of downloading them first
    in_memory: bool = False  # decode every picture once, before the first step: for small datasets
    workers: int = 4
    prefetch: int = 2  # batches ahead, per worker
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)


@dataclass
class OptimizerConfig:
    """AdamW. The learning rates of the heads and of the alignment projector are `lr` unless they are given."""

    lr: float = 5e-4
    heads_lr: float | None = None
    projector_lr: float | None = None
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float | None = None
    conflicts: Literal["keep", "project"] = "keep"  # project: PCGrad, to compare with; see conflicts.py


@dataclass
class ScheduleConfig:
    """Of the learning rates: a linear warm-up, then constant, cosine down to a share, or steps down by a factor."""

    kind: Literal["constant", "cosine", "step"] = "constant"
    warmup: int = 0
    final: float = 0.1  # cosine: the share of the rate at the last step
    until: int | None = None  # cosine: the step that reaches it; by default the last
    at: list[int] = field(default_factory=list)  # step: where the rate falls
    factor: float = 0.1  # step: by how much


@dataclass
class AnalysisConfig:
    """What is measured while a run trains; it changes nothing of the run."""

    gradient_agreement_every: int = 0  # steps between two looks at the cosines of the losses' gradients; 0: never
    parameters: str | None = None  # how the names of those weights begin; by default the first aligned block's


@dataclass
class Comparison:
    """What the run's cost is compared with: so many models, each of so many steps with so many samples."""

    name: str = ""
    models: int = 1
    batch_size: int = 1
    steps: int = 1
    teacher: bool = False  # whether each of its samples asked a teacher too


@dataclass
class RunConfig:
    steps: int = 50_000
    batch_size: int = 32  # samples per step, over all devices and accumulated passes
    device_batch_size: int | None = None  # samples per pass on one device; by default as many as the step gives it
    seed: int = 42
    base_dtype: Literal["float32", "bfloat16"] = "float32"  # of the frozen weights; trained ones are float32
    gradient_checkpointing: bool = False
    compile: bool = False
    quantize: bool = False  # QLoRA: frozen linear layers in 4 bits, by bitsandbytes
    ema: float | None = None  # decay of a moving average of the trained weights, which is what is published
    log_every: int = 10
    save_every: int = 1000
    keep: int = 2  # the last checkpoints, beside the best
    validate_every: int = 1000
    validation_samples: int = 256
    most_skipped: int = 10  # steps with a non-finite loss, in a row, before the run stops
    trackers: list[str] = field(default_factory=list)  # trackio, wandb, tensorboard


@dataclass
class Recipe:
    name: str = ""
    about: str = ""  # what it is and which table its numbers come from
    policy: str = ""  # Hub id with an optional @revision, or a folder
    robot: RobotConfig = field(default_factory=RobotConfig)
    parts: PartsConfig = field(default_factory=PartsConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    alignment: AlignmentRecipe | None = None
    goals: GoalRecipe | None = None  # then what is said of robot, parts, LoRA, alignment and teacher has no meaning
    teacher: TeacherRecipe = field(default_factory=TeacherRecipe)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    compared_with: Comparison | None = None
