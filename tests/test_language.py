"""Tests of the project's language rules, and of the scanner that checks them.

python -m pytest tests/test_language.py
"""

import ast
from pathlib import Path

import pytest

from tests.language import FOLDERS, HEADLESS, RETIRED, ROOT, findings, prose


def test_project_prose_names_its_subjects_and_uses_no_retired_words():
    found = list(findings([ROOT / name for name in FOLDERS if (ROOT / name).exists()]))
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize(
    "text",
    ["Of every layer, its width.", "Those on the Hub.", "What a worker needs to know.", "The same for ROCKET-2.",
     "of the first start of each task"],
)  # fmt: skip
def test_scanner_reports_openings_without_a_subject(text):
    assert HEADLESS.match(text)


@pytest.mark.parametrize("text", ["Return the width of every layer.", "Reader for one cache.", "Offset of a frame."])
def test_scanner_accepts_openings_with_a_subject(text):
    assert not HEADLESS.match(text)


@pytest.mark.parametrize(
    "text", ["where the run goes on", "the picture of a camera", "it tells the rate", "its licence"]
)
def test_scanner_reports_retired_words(text):
    assert RETIRED.search(text)


def test_scanner_reads_docstrings_help_texts_messages_and_test_names(tmp_path: Path):
    source = '''"""Of a module."""
def test_what_is_wrong():
    parser.add_argument("--seed", help="of the first start")
    raise ValueError(f"of {name} nothing is known")
'''
    kinds = [kind for _, kind, _ in prose(ast.parse(source))]
    assert sorted(kinds) == ["docstring", "help", "message", "test name"]
