"""MkDocs hook that writes docs/commands.md: the help of every command and subcommand of `rocket-hf`.

python docs/generate_commands.py     # print it
"""

import argparse
import functools
import importlib
from collections.abc import Iterator
from typing import Any

from rocket_hf.commands import COMMANDS

PAGE = "commands.md"
MARKER = "<!-- help of all commands -->"
WIDTH = 96
Formatter = functools.partial(argparse.RawDescriptionHelpFormatter, width=WIDTH)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill the help texts into docs/commands.md."""
    return markdown.replace(MARKER, commands_text()) if page.file.src_uri == PAGE else markdown


def commands_text() -> str:
    """Return a heading and the help of each command, and of each subcommand below its command."""
    parts = []
    for name in COMMANDS:
        for parser in with_subparsers(command_parser(name)):
            level = "##" if parser.prog == f"rocket-hf {name}" else "###"
            description, parser.description = parser.description or "", None  # as Markdown, outside of the block
            parts.append(f"{level} {parser.prog}\n\n{description}\n\n```text\n{parser.format_help().rstrip()}\n```")
    return "\n\n".join(parts)


def command_parser(name: str) -> argparse.ArgumentParser:
    module = importlib.import_module(f"rocket_hf.commands.{name.replace('-', '_')}")
    parser = argparse.ArgumentParser(f"rocket-hf {name}", description=module.__doc__)
    module.add_arguments(parser)
    return parser


def with_subparsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield a parser and the parsers of its subcommands, with this page's line width."""
    parser.formatter_class = Formatter  # type: ignore[assignment]
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from with_subparsers(subparser)


if __name__ == "__main__":
    print(commands_text())
