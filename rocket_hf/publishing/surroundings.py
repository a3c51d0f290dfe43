"""What lies beside the weights, and folders that are there whole or not at all."""

import inspect
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..modeling.configuration_rocket import RocketConfig
from ..modeling.modeling_rocket import RocketForActionPrediction
from ..modeling.processing_rocket import RocketProcessor
from .lerobot_pipelines import write_lerobot_pipelines

# Where transformers finds the classes inside a published folder.
MODEL_CLASSES = {
    "AutoConfig": "configuration_rocket.RocketConfig",
    "AutoModel": "modeling_rocket.RocketForActionPrediction",
}
PROCESSOR_CLASSES = {"AutoProcessor": "processing_rocket.RocketProcessor"}


@contextmanager
def staged(folder: str | Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends well, and vanishes otherwise."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty: choose another folder, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        staging = Path(temporary) / folder.name
        staging.mkdir()
        yield staging
        if folder.exists():
            folder.rmdir()
        staging.rename(folder)


def write_surroundings(folder: Path, config: RocketConfig, processor: RocketProcessor) -> None:
    """Everything beside the weights: config.json, the processor, the code that both name, and what lerobot reads."""
    config.auto_map = dict(MODEL_CLASSES)
    config.architectures = [RocketForActionPrediction.__name__]
    config.save_pretrained(folder)
    write_processor(folder, processor)
    write_lerobot_pipelines(folder, config, processor)


def write_processor(folder: Path, processor: RocketProcessor) -> None:
    processor.auto_map = dict(PROCESSOR_CLASSES)
    try:
        processor.save_pretrained(folder)
    finally:
        del processor.auto_map
    for path in shipped_files():
        shutil.copy(path, folder / path.name)


def shipped_files() -> list[Path]:
    """The code that travels with the weights: every file of `modeling` but the one that makes it a package."""
    folder = Path(inspect.getfile(RocketForActionPrediction)).parent
    return sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
