"""Under which license a teacher's weights are, and what that means for those who publish what they trained with it."""

from pathlib import Path

import yaml
from huggingface_hub import metadata_load

from rocket_hf.errors import UserError

UNKNOWN = "unknown"
# Of repositories whose name alone identifies them, where a folder has come without its README.
KNOWN = {"facebook/VGGT-1B": "cc-by-nc-4.0"}


def read_license(folder: Path, name: str) -> str:
    """As the front matter of the README states it; a license that the Hub has no word for by its own name."""
    readme = folder / "README.md"
    try:
        stated = (metadata_load(readme) or {}) if readme.exists() else {}
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"the front matter of {readme} cannot be read, so its license is not known") from error
    license = stated.get("license")
    if license == "other":
        license = stated.get("license_name", license)
    if isinstance(license, list):
        license = ", ".join(map(str, license))
    return str(license) if license else KNOWN.get(name, UNKNOWN)


def license_note(name: str, license: str) -> str:
    """One sentence for the log of a run and for the card of what it makes; empty where there is nothing to say."""
    if forbids_commercial_use(license):
        return (
            f"The teacher {name} is under {license}, which forbids commercial use: "
            "publish what is trained with it for non-commercial use alone, or train with another teacher."
        )
    if license == UNKNOWN:
        return (
            f"Nothing says under which license the teacher {name} is: "
            "ask those who made it before you publish what is trained with it."
        )
    return ""


def forbids_commercial_use(license: str) -> bool:
    return "-nc" in license.lower()
