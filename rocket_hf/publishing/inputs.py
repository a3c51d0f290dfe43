"""The inputs of a run as folders of this machine or as Hub repositories, whatever the working directory is."""

from pathlib import Path

from rocket_hf.errors import UserError
from rocket_hf.hub import REPO_ID, HubSource, cached_commit, cached_file, parse_source, resolve
from rocket_hf.hub_cards.facts import Source
from rocket_hf.teachers.license import UNKNOWN_LICENSE, read_license
from rocket_hf.training.input_origins import read_origins

INFO = "meta/info.json"  # of a LeRobot dataset
FILES = {"model": "config.json", "dataset": INFO}  # a file that every repository of the type has


class RunInputs:
    """Names in the recipe of a run, resolved to what they meant when the run was started."""

    def __init__(self, run: Path | None):
        self.origins = read_origins(run) if run is not None else {}

    def folder(self, name: str) -> Path | None:
        """Return the folder that an input was read from; None for one on the Hub. It may not exist any more."""
        if name in self.origins:
            recorded = self.origins[name]
            return Path(recorded) if recorded is not None else None
        return Path(name) if Path(name).is_dir() else None

    def hub_source(self, name: str, repo_type: str = "model") -> HubSource | None:
        """Return the Hub repository of an input, or None for a folder, also of another machine.

        A name without a record is on the Hub only if its files are in the Hub's cache: it could be a relative folder.
        """
        if self.folder(name) is not None or not REPO_ID.fullmatch(name.partition("@")[0]):
            return None
        if name in self.origins or cached_file(name, FILES[repo_type], repo_type):
            return parse_source(name)
        return None

    def card_source(self, name: str, repo_type: str = "model") -> Source | None:
        """Return the Hub repository of an input with the commit that was used."""
        source = self.hub_source(name, repo_type)
        if source is None:
            return None
        return Source(source.id, source.revision or cached_commit(name, FILES[repo_type], repo_type))


def card_license(source: Source) -> str | None:
    """Return the license in the card of a model on the Hub, or None if it is unknown or the card cannot be read."""
    name = f"{source.id}@{source.revision}" if source.revision else source.id
    readme = cached_file(name, "README.md")
    if readme is None:
        try:
            readme = resolve(name, ["README.md"], kind="base model").folder / "README.md"
        except UserError:
            return None
    license = read_license(readme.parent, source.id)
    return None if license == UNKNOWN_LICENSE else license
