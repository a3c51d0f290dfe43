"""Scanner for prose that breaks the project's language rules (CONTRIBUTING.md, "Language").

    python tests/language.py [PATH ...]     # print the findings in these files or folders (default: the whole project)

It reads docstrings, help texts, messages of raised errors and names of tests. It reports texts that open without a
subject ("Of every layer, ...") and retired words.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("modeling", "training", "hub_cards", "rocket_hf", "lerobot_policy_rocket", "tests", "examples")
RECORDED = ROOT / "tests" / "published_by_0_1_0"  # files of an earlier version, kept as it wrote them

# A text that opens with one of these words has no subject.
HEADLESS = re.compile(
    r"(of|those|that|what|whether|which|whose|who|how|where|as|the same|by|with|in place of|not of|likewise|so)\b", re.I
)
RETIRED = re.compile(
    r"\b(goes? on|going on|went on|comes? to it|came to it|tells?|told|says? (that|what|whether)|licen[c]es?|pictures?|"
    r"strangers?|is no folder|to mend|mends?|mended|hand(s|ed)? on|l(ies?|ying|ay) beside|looks? again|eyes|unheard|"
    r"at hand|colou[r]s?|behaviou[r]s?|artefact[s]?|metre[s])\b",
    re.I,
)
RESTS = re.compile(r"\b(teacher|policy|head|model|it) rests\b", re.I)  # "rests on" is plain English


class Finding(NamedTuple):
    path: Path
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.kind}: {' '.join(self.text.split())[:100]}"


def python_files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        yield from (file for file in files if RECORDED not in file.parents)


def literal(node: ast.expr) -> str | None:
    """Return the text of a string literal; a placeholder of an f-string becomes "X"."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
    return None


def prose(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Yield (line, kind, text) of every docstring, help text, error message and test name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if docstring := ast.get_docstring(node):
                yield getattr(node, "lineno", 1), "docstring", docstring
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield node.lineno, "test name", node.name.removeprefix("test_").replace("_", " ")
        elif isinstance(node, ast.keyword) and node.arg in ("help", "description", "desc"):
            if (text := literal(node.value)) is not None:
                yield node.value.lineno, "help", text
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            for argument in node.exc.args[:1]:
                if (text := literal(argument)) is not None:
                    yield node.lineno, "message", text


def findings(paths: list[Path]) -> Iterator[Finding]:
    for path in python_files(paths):
        for line, kind, text in prose(ast.parse(path.read_text(encoding="utf-8"))):
            if HEADLESS.match(text):
                yield Finding(path, line, f"{kind} opens without a subject", text)
            for pattern in (RETIRED, RESTS):
                if word := pattern.search(text):
                    yield Finding(path, line, f"retired word {word[0]!r} in {kind}", text)


if __name__ == "__main__":
    given = [Path(name).resolve() for name in sys.argv[1:]] or [
        ROOT / name for name in FOLDERS if (ROOT / name).exists()
    ]
    found = list(findings(given))
    print("\n".join(map(str, found)))
    print(f"{len(found)} findings")
    sys.exit(bool(found))
