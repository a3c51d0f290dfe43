"""Launching `training/train.py` with accelerate, on one or several devices, as `accelerate launch` does.

Exit codes of the training processes are returned, without a traceback of the launcher.
"""

import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from rocket_hf.errors import UserError

TRAINING_MODULE = "rocket_hf.training.train"
CONFIGS_FOLDER = Path(__file__).parent / "accelerate_configs"
# Flags of `accelerate launch` that choose the program to launch, or print its help.
EXCLUDED_FLAGS = {"-m", "--module", "--no_python", "--no-python", "-h", "--help"}
# Loggers that report defaults and failed processes. The training processes print their own errors.
LAUNCHER_LOGGERS = (
    "accelerate.commands.launch",
    "torch.distributed.elastic.multiprocessing.api",
    "torch.distributed.elastic.agent.server.api",
)


def split_launcher_flags(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split command-line words into flags of `accelerate launch`, with their values, and all other words."""
    actions = launch_command_parser()._option_string_actions  # argparse has no public access to the flags of a parser.
    flags: list[str] = []
    others: list[str] = []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        name, equals, _ = word.partition("=")
        if name not in actions or name in EXCLUDED_FLAGS:
            others.append(word)
            continue
        flags.append(word)
        takes_value = actions[name].nargs != 0
        if takes_value and not equals and remaining:
            flags.append(remaining.pop(0))
    return flags, others


def resolve_config_name(flags: Sequence[str]) -> list[str]:
    """Replace the name of an accelerate configuration of this package, such as fsdp2, by the path of its file."""
    resolved = list(flags)
    for number, flag in enumerate(flags):
        name, equals, value = flag.partition("=")
        if name not in ("--config_file", "--config-file"):
            continue
        if equals:
            resolved[number] = f"{name}={config_path(value)}"
        elif number + 1 < len(flags):
            resolved[number + 1] = str(config_path(flags[number + 1]))
    return resolved


def config_path(name: str) -> Path:
    shipped = CONFIGS_FOLDER / f"{name}.yaml"
    path = shipped if shipped.is_file() else Path(name)
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in CONFIGS_FOLDER.glob("*.yaml")))
        raise UserError(f"--config_file {name}: there is no such file; give a path, or one of {names}")
    return path


def launch_training(flags: Sequence[str], arguments: Sequence[str]) -> int:
    """Launch `training/train.py` with its arguments under `accelerate launch` with its flags; return the exit code."""
    words = [*resolve_config_name(flags), "--module", TRAINING_MODULE, *arguments]
    launcher_arguments = launch_command_parser().parse_args(words)
    for name in LAUNCHER_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        launch_command(launcher_arguments)
    except subprocess.CalledProcessError as error:  # of a single process
        return exit_code([error.returncode])
    except ChildFailedError as error:  # of several processes
        return exit_code([failure.exitcode for failure in error.failures.values()])
    except (ImportError, OSError, ValueError) as error:  # in the launcher itself, before it starts the processes
        raise UserError(
            f"accelerate launch failed: {error}; check the flags and the accelerate configuration"
        ) from error
    return 0


def exit_code(process_codes: Sequence[int]) -> int:
    """Return one exit code for failed processes. Codes of processes killed by a signal are negative and count last."""
    own_codes = [code for code in process_codes if code > 0]
    return max(own_codes) if own_codes else 128 - min(process_codes)
