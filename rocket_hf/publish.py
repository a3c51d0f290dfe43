"""A trained model to a folder that anyone can load: weights, configuration, processor and the code to run them."""

import shutil
import tempfile
from pathlib import Path

from . import modeling
from .modeling.modeling_rocket import RocketForActionPrediction
from .modeling.processing_rocket import RocketProcessor

# Where transformers finds the classes inside a published folder.
MODEL_CLASSES = {
    "AutoConfig": "configuration_rocket.RocketConfig",
    "AutoModel": "modeling_rocket.RocketForActionPrediction",
}
PROCESSOR_CLASSES = {"AutoProcessor": "processing_rocket.RocketProcessor"}


def shipped_files() -> list[Path]:
    """The code that travels with the weights: every file of `modeling` but the one that makes it a package."""
    return sorted(path for path in Path(modeling.__path__[0]).glob("*.py") if path.name != "__init__.py")


def export_policy(model: RocketForActionPrediction, processor: RocketProcessor, folder: str | Path) -> Path:
    """Writes the policy without its alignment head to `folder`, whole or not at all.

    The folder loads with `AutoModel.from_pretrained(folder, trust_remote_code=True)` where this package is missing.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty: choose another folder, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        staged = Path(temporary) / folder.name
        policy = model.for_inference()
        policy.config.auto_map = dict(MODEL_CLASSES)
        policy.save_pretrained(staged)
        save_processor(processor, staged)
        for path in shipped_files():
            shutil.copy(path, staged / path.name)
        if folder.exists():
            folder.rmdir()
        staged.rename(folder)
    return folder


def save_processor(processor: RocketProcessor, folder: Path) -> None:
    processor.auto_map = dict(PROCESSOR_CLASSES)
    try:
        processor.save_pretrained(folder)
    finally:
        del processor.auto_map
