"""Check that all dependencies can be imported on this machine, and print their versions.

A Python package may be installed correctly and still fail to import because a shared library of the system is missing.
The command reports that in one sentence, with the Debian package that contains the library.
"""

import argparse
import importlib
import platform
import re
import sys
from importlib.metadata import version

from rocket_hf.errors import UserError

HELP = "check the installation and print versions"

# Modules that must be importable, and distributions whose versions are printed.
MODULES = ("torch", "transformers", "accelerate", "peft", "datasets", "av", "lerobot.datasets.lerobot_dataset")
DISTRIBUTIONS = ("torch", "transformers", "lerobot", "accelerate", "peft", "datasets", "huggingface-hub")

DEBIAN_PACKAGES = {
    "libgomp": "libgomp1",
    "libGL": "libgl1",
    "libglib-2.0": "libglib2.0-0",
    "libgthread-2.0": "libglib2.0-0",
    "libEGL": "libegl1",
    "libOSMesa": "libosmesa6",
    "libstdc++": "libstdc++6",
    "libavutil": "ffmpeg",
    "libavcodec": "ffmpeg",
    "libavformat": "ffmpeg",
}
MISSING_LIBRARY = re.compile(r"(lib[\w+.-]+?)(\.so[.\d]*): cannot open shared object file")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no arguments."""


def run(args: argparse.Namespace) -> int:
    for module in MODULES:
        try:
            importlib.import_module(module)
        except (ImportError, OSError) as error:
            print(f"rocket-hf doctor: {explain(module, error)}", file=sys.stderr)
            return 2
    print(f"python {platform.python_version()}")
    for distribution in DISTRIBUTIONS:
        print(f"{distribution} {version(distribution)}")
    print(f"video: {video_decoder()}")
    print(f"simulator: {simulator()}")
    print(f"GPU: {accelerator()}")
    return 0


def explain(module: str, error: Exception) -> str:
    """Return in one sentence why a module cannot be imported, and how to fix it."""
    package = module.partition(".")[0]
    missing = MISSING_LIBRARY.search(str(error))
    if missing is None:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"{package} cannot be imported ({reason}): install rocket-hf again with its dependencies"
    library = missing[1] + missing[2]
    if missing[1] not in DEBIAN_PACKAGES:
        return f"{package} needs the shared library {library}, which is missing: install its system package"
    command = f"apt-get install {DEBIAN_PACKAGES[missing[1]]}"
    return f"{package} needs the shared library {library}, which is missing: run `{command}` (Debian and Ubuntu)"


def video_decoder() -> str:
    """Return the video decoder that lerobot uses: torchcodec if it can be loaded, else PyAV, which includes ffmpeg."""
    try:
        importlib.import_module("torchcodec")
    except ModuleNotFoundError:
        reason = "torchcodec is not made for this platform"
    except (ImportError, OSError, RuntimeError) as error:
        missing = MISSING_LIBRARY.search(str(error))
        if missing and DEBIAN_PACKAGES.get(missing[1]) == "ffmpeg":
            reason = "the faster torchcodec needs ffmpeg's shared libraries: `apt-get install ffmpeg`"
        else:
            reason = f"torchcodec does not load: {missing[0] if missing else str(error).strip().splitlines()[0]}"
    else:
        return f"torchcodec {version('torchcodec')}"
    return f"PyAV {version('av')} ({reason})"


def simulator() -> str:
    """Return the version of MuJoCo, which only simulators need, and its renderer."""
    from rocket_hf.sims.headless import use_offscreen_rendering

    try:
        renderer = use_offscreen_rendering()
        importlib.import_module("mujoco")
    except ModuleNotFoundError:
        return "none (install MuJoCo with `pip install 'rocket-hf[sim]'`)"
    except (UserError, ImportError, OSError, RuntimeError) as error:
        return f"none ({(str(error).strip().splitlines() or [type(error).__name__])[0]})"
    return f"MuJoCo {version('mujoco')}, rendered with {renderer or 'a window'}"


def accelerator() -> str:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return f"{', '.join(names)} (CUDA {torch.version.cuda})"
    if torch.backends.mps.is_available():
        return "Apple (mps)"
    return "none, models run on the CPU"
