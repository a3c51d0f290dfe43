"""Escaping of text from datasets and users, such as names of cameras and tasks, for Markdown and Python code."""

import json
import re
from typing import Any

# Underscores inside of words are plain text in Markdown.
MARKDOWN = re.compile(r"[\\`*\[\]<>|~&]|(?<!\w)_|_(?!\w)")
PLAIN_CODE = re.compile(r"[^`|\s]([^`|\n\r]*[^`|\s])?")


def markdown(value: Any) -> str:
    """Return a value as text on one line, in which no character is Markdown or HTML."""
    return MARKDOWN.sub(lambda match: f"\\{match[0]}", " ".join(str(value).split()))


def code(value: Any) -> str:
    """Return a value as code on one line, also for cells of tables."""
    text = str(value)
    if PLAIN_CODE.fullmatch(text):
        return f"`{text}`"
    # Backticks cannot quote each other, and a bar ends the cell of a table, so these are written as character codes.
    codes = (c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in " ".join(text.split()))
    return f"<code>{''.join(codes)}</code>"


def python(value: str) -> str:
    """Return a string literal of Python, on one line."""
    return json.dumps(value, ensure_ascii=False)


def one_line(value: str) -> str:
    return " ".join(value.split())
