"""A recipe: everything that a training run depends on, typed; from a named YAML file, with changes."""

from dataclasses import dataclass, field


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
    hue: float = 0.0  # turns of the colour circle, at most, either way
    colour_only: list[str] = field(default_factory=list)  # cameras that are neither cropped nor rotated: wrists


@dataclass
class DataConfig:
    datasets: list[DatasetConfig] = field(default_factory=list)
    validation: float = 0.05  # the share of each dataset's episodes that is held out
    streaming: bool = False  # read from the Hub while training
    workers: int = 4
    prefetch: int = 2  # batches ahead, per worker
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
