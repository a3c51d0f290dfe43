"""The command line `rocket-hf`: one file a command, each with HELP, add_arguments(parser) and run(arguments).

What a user can mend ends with one sentence on the error stream and exit code 2.
"""

import argparse
import importlib
import sys

from rocket_hf import __version__
from rocket_hf.errors import USER_ERRORS, format_error

COMMANDS = (
    "ablate",
    "adapt",
    "analyze",
    "cache",
    "convert",
    "demo",
    "doctor",
    "eval",
    "layers",
    "pretrain-encoder",
    "pretrain-teacher",
    "publish",
    "simulate",
    "train",
    "verify",
)
# Commands that pass the flags that they do not know to `accelerate launch`.
LAUNCHING_COMMANDS = ("adapt", "train")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("rocket-hf", description="Teach vision-language-action policies 3D space.")
    parser.add_argument("--version", action="version", version=f"rocket-hf {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands = {name: importlib.import_module(f".{name.replace('-', '_')}", __name__) for name in COMMANDS}
    for name, command in commands.items():
        lines = argparse.RawDescriptionHelpFormatter
        own = subparsers.add_parser(name, help=command.HELP, description=command.__doc__, formatter_class=lines)
        command.add_arguments(own)
    arguments, unknown_words = parser.parse_known_args(argv)
    if arguments.command in LAUNCHING_COMMANDS:
        arguments.unknown_words = unknown_words
    elif unknown_words:
        parser.error(f"unrecognized arguments: {' '.join(unknown_words)}")
    try:
        return commands[arguments.command].run(arguments)
    except USER_ERRORS as error:
        print(f"rocket-hf {arguments.command}: {format_error(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nrocket-hf {arguments.command}: interrupted", file=sys.stderr)
        return 130
