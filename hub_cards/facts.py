"""What a card tells, in plain values. What is not known is left out of the card."""

from dataclasses import dataclass, field
from typing import Any

Z95 = 1.959964  # the standard normal's quantile for a two-sided 95 % interval


@dataclass
class Source:
    """A repository that something came from, at one commit where that is known."""

    id: str
    revision: str | None = None


@dataclass
class Evaluation:
    """Episodes that succeeded, of a suite of tasks."""

    suite: str
    successes: int
    episodes: int

    def __post_init__(self) -> None:
        if not 0 <= self.successes <= self.episodes or not self.episodes:
            raise ValueError(f"{self.suite}: {self.successes} of {self.episodes} episodes cannot have succeeded")

    @property
    def rate(self) -> float:
        return self.successes / self.episodes

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, at 95 %: honest for few episodes and for rates near 0 and 1."""
        n, rate, square = self.episodes, self.rate, Z95**2
        center = (rate + square / (2 * n)) / (1 + square / n)
        half = Z95 * ((rate * (1 - rate) + square / (4 * n)) / n) ** 0.5 / (1 + square / n)
        return max(0.0, center - half), min(1.0, center + half)


@dataclass
class Rocket2Rates:
    """Of one player: how often it came to what was marked, and how often to something else first."""

    shown: str  # how often the goal was marked anew; empty for who does not look
    player: str
    reached: Evaluation
    wrong: Evaluation


@dataclass
class Rocket2Evaluation:
    """Episodes after goals, of the policy and of chance from the same starts."""

    suite: str
    most_steps: int | None
    rates: list[Rocket2Rates]


@dataclass
class Teacher:
    """The 3D vision model that the policy was aligned with; it is not part of what is published."""

    name: str
    revision: str | None = None
    license: str | None = None
    note: str = ""  # what its license means for this policy


@dataclass
class Training:
    recipe: str
    about: str = ""
    steps: int = 0
    batch_size: int = 0
    settings: list[tuple[str, Any]] = field(default_factory=list)  # beyond the recipe's defaults
    # student layer, teacher layer, and the width of the projector's part, where it is known
    pairs: list[tuple[int, int, int | None]] = field(default_factory=list)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # by loss: (step, value)
    teacher: Teacher | None = None
    compute: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Provenance:
    """What only those who publish a policy know of it."""

    license: str
    base_model: Source | None  # none of a policy that began with nothing
    datasets: list[Source] = field(default_factory=list)
    training: Training | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
    control_rate: float | None = None  # Hz
    conventions: str = ""  # rotation, gripper, frames of reference, in a sentence
    after_goals: list[Rocket2Evaluation] = field(default_factory=list)


@dataclass
class Robot:
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


@dataclass
class Artifact:
    """What is published, as it is found in the files."""

    repo: str
    revision: str  # a tag, or the branch
    backbone: str
    parameters: int
    dtype: str
    robot: Robot
    versions: dict[str, str]
    tolerances: dict[str, float] = field(default_factory=dict)
    image_effect: float = 0.0


@dataclass
class Rocket2Artifact:
    """The same of a policy that goes after what is marked in a picture."""

    repo: str
    revision: str
    parameters: int
    dtype: str
    image_size: tuple[int, ...]  # height, width
    actions: list[tuple[str, int, int]]  # by factor, in the order of an action's columns: choices, and that of rest
    minecraft: bool  # whether they are Minecraft's buttons and camera
    interactions: dict[str, int]  # what can be done with the goal
    window_steps: int
    heads: list[str]  # that were kept
    versions: dict[str, str]
    tolerances: dict[str, float] = field(default_factory=dict)
    effects: dict[str, float] = field(default_factory=dict)


@dataclass
class Adapter:
    """What an adapter adds to its base."""

    base: Source
    rank: int
    alpha: float
    targets: int  # modules with LoRA
    full: list[str]  # modules that were trained in full


@dataclass
class GeneratedDataset:
    """A dataset that a simulator made."""

    repo: str
    revision: str
    license: str
    simulator: str
    tasks: list[str]
    episodes: int
    frames: int
    rate: float
    cameras: dict[str, tuple[int, int]]  # height, width
    state_dim: int
    action_dim: int
    robot: str = ""
    seed: int = 0
    command: str = ""  # that makes it again
    versions: dict[str, str] = field(default_factory=dict)
