"""MkDocs hook that shows mkdocstrings the package as it is installed.

`modeling/`, `training/` and `hub_cards/` are installed as `rocket_hf.modeling` and so on (`package-dir` in
pyproject.toml). mkdocstrings reads source files without importing them, so it would not find `rocket_hf.modeling`
in this repository. The hook builds a temporary folder of links with the installed layout, which is the search path.
"""

import tempfile
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority

ROOT = Path(__file__).resolve().parents[1]
MAPPED_ROOMS = ("modeling", "training", "hub_cards")
VIEW = tempfile.TemporaryDirectory(prefix="rocket_hf-docs-")  # removed when the process ends


@event_priority(100)  # before mkdocstrings reads its own configuration
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Set the search path of mkdocstrings' Python handler."""
    handlers = config.plugins["mkdocstrings"].config.handlers
    handlers["python"]["paths"] = [str(link_package(Path(VIEW.name)))]
    return config


def link_package(folder: Path) -> Path:
    """Link the files of the package into `folder/rocket_hf`, in the installed layout; return `folder`."""
    package = folder / "rocket_hf"
    package.mkdir(exist_ok=True)
    entries = [*(ROOT / "rocket_hf").iterdir(), *(ROOT / room for room in MAPPED_ROOMS)]
    for entry in entries:
        link = package / entry.name
        if not link.is_symlink():
            link.symlink_to(entry)
    return folder
