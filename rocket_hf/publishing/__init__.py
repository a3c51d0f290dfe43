"""Publishing of trained policies on the Hub.

    from rocket_hf.publishing import PolicyPackage, Provenance, Source, push, write_to_folder

    provenance = Provenance(license="apache-2.0", base_model=Source("lerobot/pi0_base"))
    package = PolicyPackage(model, processor, provenance)
    push(package, "you/your-robot", tag="v1")    # one verified commit, then the tag
    write_to_folder(package, "folder")           # or the same files in a new folder

`AdapterPackage` and `Rocket2Package` are the packages of LoRA adapters and of ROCKET-2 policies. `verify_policy` runs
the self-test of a published policy. The names are imported on first access, so that `upload` alone is fast to import.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rocket_hf.hub_cards.facts import Provenance, Source

    from .package import AdapterPackage, Package, PolicyPackage, Rocket2Package, push, write_to_folder
    from .upload import Published
    from .verify import verify_policy

MODULES = {
    "AdapterPackage": "rocket_hf.publishing.package",
    "Package": "rocket_hf.publishing.package",
    "PolicyPackage": "rocket_hf.publishing.package",
    "Provenance": "rocket_hf.hub_cards.facts",
    "Published": "rocket_hf.publishing.upload",
    "Rocket2Package": "rocket_hf.publishing.package",
    "Source": "rocket_hf.hub_cards.facts",
    "push": "rocket_hf.publishing.package",
    "verify_policy": "rocket_hf.publishing.verify",
    "write_to_folder": "rocket_hf.publishing.package",
}
__all__ = [
    "AdapterPackage",
    "Package",
    "PolicyPackage",
    "Provenance",
    "Published",
    "Rocket2Package",
    "Source",
    "push",
    "verify_policy",
    "write_to_folder",
]


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(MODULES[name]), name)
