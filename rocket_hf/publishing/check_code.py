"""Checks of the code in a published folder. They parse the code, but never execute it."""

import ast
import sys
from pathlib import Path

from rocket_hf.errors import UserError
from rocket_hf.export.export_files import shipped_files
from rocket_hf.export.policy_kinds import PolicyKind

# Packages that published code may import: those that users of AutoModel have, or are told to install.
PACKAGES = {"torch", "transformers", "numpy", "huggingface_hub", "tokenizers", "safetensors", "PIL", "timm"}
UNSAFE_MODULES = {"subprocess", "socket", "ctypes", "pickle", "marshal", "shelve", "urllib", "http", "ftplib", "pty"}


def check_code_files(folder: Path) -> None:
    """Check that the code imports only other files of the folder, allowed packages and safe standard modules."""
    paths = code_files(folder)
    for path in paths:
        if path.parent != folder:
            raise UserError(
                f"{path.relative_to(folder)} is code in a subfolder, which published code must not have: remove it"
            )
    for path in paths:
        check_code(path, {other.stem for other in paths})


def check_code(path: Path, siblings: set[str]) -> None:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path.name} is not Python code ({error}): export the policy again") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules, level = [alias.name for alias in node.names], 0
        elif isinstance(node, ast.ImportFrom):
            modules, level = [node.module or ""], node.level
        else:
            continue
        for module in modules:
            top = module.split(".")[0]
            allowed = siblings if level else PACKAGES | sys.stdlib_module_names - UNSAFE_MODULES
            if level > 1 or (module if level else top) not in allowed:
                raise UserError(
                    f"{path.name} imports {'.' * level}{module}, which published code must not: export the policy again"
                )


def code_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if path.is_file())


def changed_code_files(folder: Path, kind: PolicyKind) -> list[str]:
    """Return the names of the code files that are not those of this version of the package, byte for byte."""
    own = {path.name: path.read_bytes() for path in shipped_files(kind.code)}
    published = {path.relative_to(folder).as_posix(): path.read_bytes() for path in code_files(folder)}
    return sorted(name for name in own.keys() | published.keys() if own.get(name) != published.get(name))
