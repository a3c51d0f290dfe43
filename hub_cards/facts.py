"""Facts that cards show, as plain values. Facts that are unknown are left out of the card."""

from dataclasses import dataclass, field
from typing import Any


class CardError(ValueError):
    """Facts that no card can show, such as a metric that is not finite."""


@dataclass
class Source:
    """Hub repository of a model or a dataset, with its commit or tag where that is known."""

    id: str
    revision: str | None = None


@dataclass
class Evaluation:
    """Number of successful episodes on a suite of tasks."""

    suite: str
    successes: int
    episodes: int

    def __post_init__(self) -> None:
        if not 0 <= self.successes <= self.episodes or not self.episodes:
            raise CardError(f"{self.suite}: {self.successes} of {self.episodes} episodes cannot have succeeded")

    @property
    def rate(self) -> float:
        return self.successes / self.episodes

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval, which stays correct for few episodes and for rates near 0 and 1."""
        from scipy.stats import binomtest

        interval = binomtest(self.successes, self.episodes).proportion_ci(0.95, method="wilson")
        return float(interval.low), float(interval.high)


@dataclass
class BenchmarkResult:
    """Evaluation on a benchmark that has a dataset on the Hub; it is written to `.eval_results/`."""

    dataset_id: str
    task_id: str
    evaluation: Evaluation


@dataclass
class RolloutImages:
    """Image strips (PNG) of one successful and one failed episode of an evaluation."""

    success: bytes | None = None
    failure: bytes | None = None


@dataclass
class Rocket2Rates:
    """Rates at which one player reached the target, or another object first, in ROCKET-2's evaluation."""

    goal_refresh: str  # how often the goal was marked again, such as "every 30 steps"; empty for the random player
    player: str
    reached: Evaluation
    wrong: Evaluation


@dataclass
class Rocket2Evaluation:
    """Evaluation of a ROCKET-2 policy and of the random player from the same start states."""

    suite: str
    max_steps: int | None
    rates: list[Rocket2Rates]


@dataclass
class TeacherFacts:
    """The frozen 3D vision model that the policy was aligned with. It is not part of the repository."""

    name: str
    revision: str | None = None
    license: str | None = None
    note: str = ""  # consequences of the teacher's license for the policy


@dataclass
class TrainingFacts:
    """Recipe, losses and cost of a training run."""

    recipe: str
    about: str = ""
    steps: int = 0
    batch_size: int = 0
    settings: list[tuple[str, Any]] = field(default_factory=list)  # settings that differ from the defaults
    # (student layer, teacher layer, width of the projector's part or None if unknown)
    pairs: list[tuple[int, int, int | None]] = field(default_factory=list)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # loss name -> [(step, value)]
    teacher: TeacherFacts | None = None
    compute: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Provenance:
    """Facts about a policy's origin and evaluation, which the policy's own files do not contain."""

    license: str
    base_model: Source | None  # None for a policy that was trained from scratch
    datasets: list[Source] = field(default_factory=list)
    training: TrainingFacts | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
    control_rate: float | None = None  # Hz
    conventions: str = ""  # rotation, gripper and frames of reference, in a sentence
    rocket2_evaluations: list[Rocket2Evaluation] = field(default_factory=list)
    benchmark_results: list[BenchmarkResult] = field(default_factory=list)
    rollouts: RolloutImages | None = None


@dataclass
class RobotFacts:
    """Inputs and outputs of a VLA policy on its robot."""

    cameras: list[str]
    image_size: int
    resize: str
    state_dim: int
    action_dim: int
    chunk_size: int
    state_normalization: str
    action_normalization: str
    state_names: list[str] | None = None
    action_names: list[str] | None = None
    fps: float | None = None  # control rate in Hz
    example_task: str | None = None


@dataclass
class Artifact:
    """Facts about a published VLA policy or adapter, read from its files."""

    repo: str
    revision: str  # a tag, or the branch
    backbone: str
    parameters: int
    dtype: str
    robot: RobotFacts
    versions: dict[str, str]
    tolerances: dict[str, float] = field(default_factory=dict)
    image_effect: float = 0.0


@dataclass
class Rocket2Artifact:
    """Facts about a published ROCKET-2 policy, read from its files."""

    repo: str
    revision: str
    parameters: int
    dtype: str
    image_size: tuple[int, ...]  # height, width
    actions: list[
        tuple[str, int, int]
    ]  # (factor, number of choices, rest choice), in the order of the action's columns
    minecraft: bool  # whether the factors are Minecraft's buttons and camera
    interactions: dict[str, int]  # name -> number of each interaction with the goal object
    window_steps: int
    heads: list[str]  # auxiliary heads that were kept
    versions: dict[str, str]
    tolerances: dict[str, float] = field(default_factory=dict)
    effects: dict[str, float] = field(default_factory=dict)


@dataclass
class AdapterFacts:
    """Weights that an adapter adds to its base policy."""

    base: Source
    rank: int
    alpha: float
    targets: int  # number of modules with LoRA layers
    full: list[str]  # names of the modules that were trained in full


@dataclass
class GeneratedDataset:
    """Facts about a dataset that was recorded in a simulator."""

    repo: str
    revision: str
    license: str
    simulator: str
    tasks: list[str]
    episodes: int
    frames: int
    rate: float
    cameras: dict[str, tuple[int, int]]  # name -> (height, width)
    state_dim: int
    action_dim: int
    robot: str = ""
    seed: int = 0
    command: str = ""  # the command that reproduces the dataset
    versions: dict[str, str] = field(default_factory=dict)
