"""Files of a policy folder besides the weights, and folders that are written completely or not at all."""

import inspect
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

from rocket_hf.errors import UserError
from rocket_hf.files import create_folder
from rocket_hf.folder_lock import FolderLock, remove_unlocked_folders
from rocket_hf.foreign_code import MODEL_CLASSES, PROCESSOR_CLASSES, ROCKET2_CLASSES
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.modeling.strict_config import StrictConfig

from .lerobot_pipelines import write_lerobot_pipelines


@contextmanager
def staged_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `folder` when the block ends without an exception, else it is removed.

    Temporary folders of killed processes are removed as well.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"the output folder {folder} exists and is not empty: choose another one, or remove it")
    create_folder(folder.parent)
    prefix = f".{folder.name}.partial-"
    remove_unlocked_folders(folder.parent, prefix)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as temporary, FolderLock(Path(temporary)):
        staging = Path(temporary) / folder.name
        staging.mkdir()
        yield staging
        try:
            if folder.exists():
                folder.rmdir()
            staging.rename(folder)
        except OSError as error:
            raise UserError(
                f"the output folder {folder} cannot be written: {error.strerror}; choose another one, or remove it"
            ) from error


def export_policy(model: RocketForActionPrediction, processor: RocketProcessor, folder: str | Path) -> Path:
    """Write a policy without its alignment head to `folder`, completely or not at all.

    `AutoModel.from_pretrained(folder, trust_remote_code=True)` loads it without this package.
    """
    with staged_folder(folder) as staging:
        policy = model.for_inference()
        policy.save_pretrained(staging)
        write_policy_files(staging, policy.config, processor)
    return Path(folder)


def write_policy_files(folder: Path, config: RocketConfig, processor: RocketProcessor) -> None:
    """Write all files besides the weights: configuration, processor, their code, and lerobot's processor pipelines."""
    write_config(folder, config, MODEL_CLASSES)
    write_processor(folder, processor)
    write_lerobot_pipelines(folder, config, processor)


def write_rocket2_files(folder: Path, config: Rocket2Config) -> None:
    """Write a ROCKET-2 policy's configuration and code. It has no processor, because it takes images unchanged."""
    write_config(folder, config, ROCKET2_CLASSES)
    copy_code(folder, ROCKET2_CLASSES)


def write_config(folder: Path, config: StrictConfig, classes: dict[str, str]) -> None:
    config.auto_map = dict(classes)
    config.architectures = [classes["AutoModel"].partition(".")[2]]
    config.save_pretrained(folder)


def write_processor(folder: Path, processor: RocketProcessor) -> None:
    processor.tokenizer.init_kwargs.pop("auto_map", None)  # of a foreign tokenizer; it would be saved and executed
    processor.auto_map = dict(PROCESSOR_CLASSES)
    try:
        processor.save_pretrained(folder)
    finally:
        del processor.auto_map
    copy_code(folder, MODEL_CLASSES | PROCESSOR_CLASSES)


def copy_code(folder: Path, classes: dict[str, str]) -> None:
    for path in shipped_files(classes):
        shutil.copy(path, folder / path.name)


def shipped_files(classes: dict[str, str] | None = None) -> list[Path]:
    """Return the files of `modeling` that are published with a policy: those that define `classes`, and their imports.

    `classes` is a value for `auto_map`; by default those of the VLA policies.
    """
    folder = Path(inspect.getfile(StrictConfig)).parent
    places = classes or MODEL_CLASSES | PROCESSOR_CLASSES
    entries = {folder / f"{place.partition('.')[0]}.py" for place in places.values()}
    return sorted(entries | {Path(file) for entry in entries for file in get_relative_import_files(entry)})
