"""Recipes: the typed settings of a training run. `recipe_files.py` reads them from YAML files.

A `VLARecipe` trains a vision-language-action policy, with or without alignment to a 3D vision model; a `Rocket2Recipe`
trains a ROCKET-2 policy. Defaults of VLA recipes are those of ROCKET on LIBERO (arXiv 2602.17951, appendix on
hyper-parameters, and its public code) where it has one.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

TrainingMode = Literal["frozen", "lora", "full"]
Nesting = Literal["none", "increasing", "decreasing", "explicit"]
TargetKind = Literal["own", "shuffled", "position"]
MatmulPrecision = Literal["highest", "high", "medium"]
DepthStrategy = Literal["early-to-middle+last", "uniform", "shallow", "middle", "deep"]


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

    lr: float = 5e-4  # initial learning rate after the warm-up
    heads_lr: float | None = None  # learning rate of the heads
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # decay rates of Adam's two moments
    eps: float = 1e-8  # Adam's epsilon
    weight_decay: float = 0.01  # decoupled weight decay of all trained weights
    clip_norm: float | None = None  # largest norm of the gradient; by default gradients are not clipped


@dataclass
class ScheduleConfig:
    """Learning-rate schedule: linear warm-up, then constant, cosine decay, or decay in steps."""

    kind: Literal["constant", "cosine", "step"] = "constant"  # course of the learning rate after the warm-up
    warmup: int = 0  # steps
    final: float = 0.1  # cosine: the final learning rate as a share of the initial one
    until: int | None = None  # cosine: the step that reaches `final`; the last step by default
    at: list[int] = field(default_factory=list)  # step: the steps at which the learning rate is multiplied by `factor`
    factor: float = 0.1  # step: factor of each decrease


@dataclass
class BaseRunConfig:
    steps: int = 50_000  # optimizer steps
    batch_size: int = 32  # samples per step, summed over devices and accumulated passes
    device_batch_size: int | None = None  # samples per pass on one device; by default the step's share of the device
    seed: int = 42  # seed of new weights, of the order of samples, and of all noise
    gradient_checkpointing: bool = False  # recompute activations in the backward pass to save memory
    matmul_precision: MatmulPrecision = "highest"  # of float32, as in torch.set_float32_matmul_precision
    ema: float | None = None  # decay of a moving average of the trained weights; the average is what is exported
    log_every: int = 10  # steps between two writes of the journal
    save_every: int = 1000  # steps between two checkpoints
    keep: int = 2  # number of latest checkpoints to keep, in addition to the best one
    validate_every: int = 1000  # steps between two validations
    validation_samples: int = 256  # number of held-out samples of a validation
    max_skipped_steps: int = 10  # consecutive steps with a non-finite loss that stop the run
    trackers: list[str] = field(default_factory=list)  # trackio, wandb, tensorboard


@dataclass
class BaseRecipe:
    name: str = ""  # name of the run; by default the recipe file's name
    about: str = ""  # description, with the table that the numbers come from
    policy: str = ""  # Hub id with an optional @revision, or a folder
    data: BaseDataConfig = field(default_factory=BaseDataConfig)
    optimizer: BaseOptimizerConfig = field(default_factory=BaseOptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: BaseRunConfig = field(default_factory=BaseRunConfig)


# Vision-language-action policies


@dataclass
class RobotConfig:
    """Robot of the policy. Cameras, dimensions, names, rate and task are read from the first dataset unless they are
    given; the other settings stay as the policy has them."""

    cameras: list[str] | None = None  # names of the cameras, in the policy's order
    state_dim: int | None = None  # number of state dimensions
    action_dim: int | None = None  # number of action dimensions
    state_names: list[str] | None = None  # name of each state dimension
    action_names: list[str] | None = None  # name of each action dimension
    fps: float | None = None  # control rate in Hz
    example_task: str | None = None  # a task of the training data
    datasets: list[str] | None = None  # names of the datasets, for the policy's configuration
    chunk_size: int | None = None  # number of actions of a chunk
    state_normalization: str | None = None  # identity, mean_std, min_max or quantile
    action_normalization: str | None = None  # identity, mean_std, min_max or quantile


@dataclass
class PartsConfig:
    """Training mode of each part of a policy: image encoder, language model, action expert, and heads (state and action
    projections). A setting for a part that the policy does not have is ignored."""

    vision: TrainingMode = "lora"  # image encoder
    language: TrainingMode = "lora"  # language model
    expert: TrainingMode = "lora"  # action expert
    heads: TrainingMode = "full"  # state and action projections


@dataclass
class LoraSettings:
    rank: int = 32  # rank of the adapters
    alpha: int = 16  # scale of the adapters; their product is multiplied by alpha / rank
    dropout: float = 0.0  # dropout before the adapters
    init: Literal["gaussian", "kaiming", "pissa", "olora"] = "gaussian"  # initialization of the adapters, see PEFT


@dataclass
class AlignmentSettings:
    """The aligned layer pairs (see `AlignmentConfig`) and the weight of the alignment losses."""

    pairs: int | None = None  # number of layer pairs that `strategy` chooses; by default the two lists of layers
    strategy: DepthStrategy = "early-to-middle+last"  # how `pairs` layers are chosen; the default is that of ROCKET
    student_layers: list[int] = field(default_factory=list)  # layers of the policy, shallow to deep; -1 is the last
    teacher_layers: list[int] = field(default_factory=list)  # layer of the teacher for each of them
    projector: Literal["shared", "independent"] = "shared"  # one projector for all pairs, or one for each pair
    nesting: Nesting = "none"  # increasing: deeper pairs use more hidden units of the shared projector
    nested_widths: list[int] | None = None  # explicit: number of hidden units of each pair
    hidden_width: int | None = None  # by default the width of the teacher's features
    weight: float = 0.5  # weight of the mean alignment loss
    schedule: Literal["constant", "linear", "stop"] = "constant"  # course of the weight
    until: int | None = None  # step at which a linear schedule reaches zero, or at which alignment stops
    normalize_targets: float = 0.0  # share of the mean target of an image that is subtracted from each of its targets
    reference_compat: bool = False  # resample the teacher's features as the public ROCKET code does


@dataclass
class TeacherSettings:
    name: str = "facebook/VGGT-1B"  # Hub id, folder, embedded, embedded-untrained, or oracle (with caches)
    revision: str | None = None  # tag, branch or commit of the teacher on the Hub
    resolution: str | int = "camera"  # "camera", "teacher" or a side in pixels
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # dtype of the teacher's weights and features
    compile: bool = False  # compile the teacher with torch.compile
    caches: list[str] = field(default_factory=list)  # feature cache folders, one per dataset; without, run the teacher
    targets: TargetKind = "own"  # own, or as a control: shuffled (features of other frames) or position (no features)


@dataclass
class DatasetConfig(BaseDatasetConfig):
    """One LeRobot dataset (v3) and the mapping from its columns to the policy's inputs."""

    weight: float | None = None  # share of the samples; by default the datasets' numbers of frames
    episodes: list[int] | None = None  # by default all
    cameras: dict[str, str] = field(default_factory=dict)  # policy camera -> dataset column; by default in their order
    state: str = "observation.state"  # column of the state
    action: str = "action"  # column of the actions
    state_names: list[str] | None = None  # names by which state dimensions match those of other datasets; else its own
    action_names: list[str] | None = None  # names by which action dimensions match those of other datasets
    action_kinds: list[str] | None = None  # for `resample`: position, delta, velocity or discrete, per dimension


@dataclass
class AugmentationConfig:
    """Random augmentation of each camera image, before it is resized for the policy. Zeros change nothing."""

    crop_area: float = 1.0  # smallest share of the image area that a crop keeps, at the same aspect ratio
    crop_fixed: bool = False  # every crop keeps exactly `crop_area`, at a random place
    rotation: float = 0.0  # largest angle in degrees, in either direction
    brightness: float = 0.0  # largest added value, as a share of the pixel range
    contrast: float = 0.0  # factors in 1 +- this
    saturation: float = 0.0  # factors in 1 +- this
    hue: float = 0.0  # largest rotation of the color circle in turns, in either direction
    color_only: list[str] = field(default_factory=list)  # cameras without crops and rotations; or patterns: "*wrist*"
    same_geometry: dict[str, str] = field(default_factory=dict)  # map -> camera whose crops it gets, without colors


@dataclass
class DataConfig(BaseDataConfig):
    datasets: list[DatasetConfig] = field(default_factory=list)  # type: ignore[assignment]
    streaming: bool = False  # fetch video frames from the Hub during training instead of downloading them first
    in_memory: bool = False  # decode all images before the first step, for small datasets
    resample: float | None = None  # control rate in Hz to which all datasets are resampled; by default none is
    allow_rates: bool = False  # mix datasets with different control rates as they are, without resampling
    workers: int = 4  # processes that load batches; 0: the training process
    prefetch: int = 2  # batches that each worker loads ahead
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)


@dataclass
class OptimizerConfig(BaseOptimizerConfig):
    """AdamW. The learning rates of the heads and of the alignment projector are `lr` unless they are given."""

    projector_lr: float | None = None  # learning rate of the alignment projector
    conflicts: Literal["keep", "project"] = "keep"  # project: PCGrad, for comparison; see vla/gradient_projection.py


@dataclass
class RunConfig(BaseRunConfig):
    base_dtype: Literal["float32", "bfloat16"] = "float32"  # dtype of the frozen weights; trained ones are float32
    compile: bool = False  # compile the policy with torch.compile
    quantize: bool = False  # QLoRA: frozen linear layers in 4 bits, with bitsandbytes


@dataclass
class AnalysisConfig:
    """Measurements during training. They do not change the run."""

    gradient_agreement_every: int = 0  # steps between measurements of the cosines between loss gradients; 0: never
    parameters: str | None = None  # prefix of the names of these weights; by default the first aligned block


@dataclass
class CostComparison:
    """Training that the dry run compares the cost of this run with."""

    name: str = ""  # name that the dry run prints
    models: int = 1  # number of models that were trained
    batch_size: int = 1  # samples of each of their steps
    steps: int = 1  # steps of each model
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
    action: float = 0.01  # weight of the action loss
    visibility: float = 0.01  # weight of the visibility loss; an auxiliary head with weight 0 is not created
    point: float = 0.1  # weight of the loss of the goal's center
    box: float = 0.1  # weight of the loss of the goal's bounding box
    keep: list[str] = field(default_factory=list)  # auxiliary heads that the exported policy keeps


@dataclass
class Rocket2Recipe(BaseRecipe):
    """All episodes and columns of a dataset are used, and its images are kept in memory."""

    rocket2: Rocket2Settings = field(default_factory=Rocket2Settings)
