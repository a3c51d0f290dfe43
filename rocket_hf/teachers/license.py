"""Licenses of teachers, and what they mean for publishing a policy that was trained with one."""

from pathlib import Path

import yaml
from huggingface_hub import metadata_load

from rocket_hf.errors import UserError

from .oracle import ORACLE, ORACLE_LICENSE

UNKNOWN_LICENSE = "unknown"
# Licenses of the teacher without files, and of well-known repositories, whose copies may lack their README.
KNOWN_LICENSES = {ORACLE: ORACLE_LICENSE, "facebook/VGGT-1B": "cc-by-nc-4.0"}


def read_license(folder: Path, name: str) -> str:
    """Return the license in the README's front matter. For "other", return the license's own name, if it is given."""
    readme = folder / "README.md"
    try:
        metadata = (metadata_load(readme) or {}) if readme.exists() else {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"the license of {name} is unknown, because the front matter of {readme} cannot be read: correct the file"
        ) from error
    license = metadata.get("license")
    if license == "other":
        license = metadata.get("license_name", license)
    if isinstance(license, list):
        license = ", ".join(map(str, license))
    return str(license) if license else KNOWN_LICENSES.get(name, UNKNOWN_LICENSE)


def license_note(name: str, license: str) -> str:
    """Return one sentence about the teacher's license for logs and model cards; empty if the license allows any use."""
    if forbids_commercial_use(license):
        return (
            f"The teacher {name} is licensed under {license}, which forbids commercial use: "
            "publish what is trained with it for non-commercial use only, or train with another teacher."
        )
    if license == UNKNOWN_LICENSE:
        return (
            f"The license of the teacher {name} is unknown: ask its authors before you publish what is trained with it."
        )
    return ""


def forbids_commercial_use(license: str) -> bool:
    return "-nc" in license.lower()
