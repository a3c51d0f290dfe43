"""Origins of a run's inputs: which names in its recipe are folders of this machine, and not Hub repositories.

A name such as `models/base` could be either, and at publishing time the working directory may be another one.
"""

from pathlib import Path

from rocket_hf.checkpoint_files import read_json_object
from rocket_hf.errors import UserError
from rocket_hf.files import expand_user, write_json

from .recipe import BaseRecipe, VLARecipe

ORIGINS = "origins.json"  # in the folder of a run


def write_origins(recipe: BaseRecipe, out: Path) -> None:
    """Write the absolute path of each input that is a folder, and null for each one on the Hub."""
    names = [recipe.policy, *(dataset.id for dataset in recipe.data.datasets)]
    if isinstance(recipe, VLARecipe):
        names.append(recipe.teacher.name)
    folders = {name: expand_user(name) for name in names if name}
    write_json(out / ORIGINS, {name: str(path.resolve()) if path.is_dir() else None for name, path in folders.items()})


def read_origins(run: Path) -> dict[str, str | None]:
    """Return the content of the file; empty for a run of version 0.1.0, which did not write it."""
    path = run / ORIGINS
    if not path.is_file():
        return {}
    values = read_json_object(path, fix="restore the file")
    if not all(isinstance(value, str | None) for value in values.values()):
        raise UserError(f"{path} is not a table of names and paths: restore the file")
    return values
