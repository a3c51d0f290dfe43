"""Under which licence a teacher's weights are, and what that means for those who publish what they trained with it."""

from pathlib import Path

import yaml
from huggingface_hub import metadata_load

UNKNOWN = "unknown"
# Of repositories whose name alone identifies them, where a folder has come without its README.
KNOWN = {"facebook/VGGT-1B": "cc-by-nc-4.0"}


def read_licence(folder: Path, name: str) -> str:
    """As the front matter of the README states it; a licence that the Hub has no word for by its own name."""
    readme = folder / "README.md"
    try:
        stated = (metadata_load(readme) or {}) if readme.exists() else {}
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"the front matter of {readme} cannot be read, so its licence is not known") from error
    licence = stated.get("license")
    if licence == "other":
        licence = stated.get("license_name", licence)
    if isinstance(licence, list):
        licence = ", ".join(map(str, licence))
    return str(licence) if licence else KNOWN.get(name, UNKNOWN)


def licence_note(name: str, licence: str) -> str:
    """One sentence for the log of a run and for the card of what it makes; empty where there is nothing to say."""
    if forbids_commercial_use(licence):
        return (
            f"The teacher {name} is under {licence}, which forbids commercial use: "
            "publish what is trained with it for non-commercial use alone, or train with another teacher."
        )
    if licence == UNKNOWN:
        return (
            f"Nothing says under which licence the teacher {name} is: "
            "ask those who made it before you publish what is trained with it."
        )
    return ""


def forbids_commercial_use(licence: str) -> bool:
    return "-nc" in licence.lower()
