"""The command line `rocket-hf`. Each command is a module with HELP, add_arguments(parser) and run(arguments).

Errors that a user can fix (USER_ERRORS) are printed in one sentence, with exit code 2. All other exceptions are bugs
and keep their traceback. Modules of commands import torch only in functions, so that `--help` stays fast.
"""

import argparse
import difflib
import importlib
import sys
from pathlib import Path

from rocket_hf import __version__
from rocket_hf.errors import USER_ERRORS, UserError, format_error
from rocket_hf.files import require_usable_path

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
    "study",
    "train",
    "verify",
)
# Commands that pass flags which they do not define to `accelerate launch`.
LAUNCHING_COMMANDS = ("adapt", "train")
RETIRED_COMMANDS = {"pretrain-eyes": "pretrain-encoder"}

DESCRIPTION = "Train, evaluate and publish vision-language-action policies that understand 3D space."
EPILOG = (
    "`rocket-hf COMMAND --help` describes a command. `rocket-hf demo` runs the whole workflow in 10 minutes on a CPU."
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("rocket-hf", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"rocket-hf {__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    commands = {name: importlib.import_module(f".{name.replace('-', '_')}", __name__) for name in COMMANDS}
    for name, command in commands.items():
        subparser = subparsers.add_parser(name, help=command.HELP, description=command.__doc__)
        subparser.formatter_class = argparse.RawDescriptionHelpFormatter
        command.add_arguments(subparser)
    words = sys.argv[1:] if argv is None else argv
    reject_unknown_command(parser, words)
    arguments, unknown_words = parser.parse_known_args(words)
    if arguments.command in LAUNCHING_COMMANDS:
        arguments.unknown_words = unknown_words
    elif unknown_words:
        parser.error(f"unrecognized arguments: {' '.join(unknown_words)}")
    try:
        check_paths(arguments)
        return commands[arguments.command].run(arguments)
    except USER_ERRORS as error:
        print(f"rocket-hf {arguments.command}: {format_error(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nrocket-hf {arguments.command}: interrupted", file=sys.stderr)
        return 130


def check_paths(arguments: argparse.Namespace) -> None:
    """Raise a UserError if an argument is no valid text, or a path that the file system does not accept."""
    for values in vars(arguments).values():
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, Path):
                require_usable_path(value)
            elif isinstance(value, str) and not is_utf8(value):
                raise UserError(f"the argument {value!a} is not UTF-8: write it in another way")


def is_utf8(text: str) -> bool:
    """Return whether a text can be written; bytes of arguments that are not UTF-8 become surrogates."""
    return text.encode(errors="ignore").decode() == text


def reject_unknown_command(parser: argparse.ArgumentParser, words: list[str]) -> None:
    """Exit with a hint if the first word is not the name of a command."""
    if not words or words[0].startswith("-") or words[0] in COMMANDS:
        return
    if words[0] in RETIRED_COMMANDS:
        parser.error(f"the command {words[0]!r} is now called {RETIRED_COMMANDS[words[0]]!r}")
    similar = difflib.get_close_matches(words[0], COMMANDS, n=1)
    hint = f"did you mean {similar[0]!r}?" if similar else f"choose one of {', '.join(COMMANDS)}"
    parser.error(f"unknown command {words[0]!r}: {hint}")
