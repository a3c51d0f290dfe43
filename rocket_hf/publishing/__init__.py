"""Publishing of trained policies on the Hub.

    from rocket_hf.publishing import PolicyPackage, Provenance, Source, push, write_to_folder

    provenance = Provenance(license="apache-2.0", base_model=Source("lerobot/pi0_base"))
    package = PolicyPackage(model, processor, provenance)
    push(package, "you/your-robot", tag="v1")    # one verified commit, then the tag
    write_to_folder(package, "folder")           # or the same files in a new folder

`AdapterPackage` and `Rocket2Package` are the packages of LoRA adapters and of ROCKET-2 policies. `verify_policy` runs
the self-test of a published policy.
"""

from rocket_hf.hub_cards.facts import Provenance, Source

from .package import AdapterPackage, Package, PolicyPackage, Rocket2Package, push, write_to_folder
from .upload import Published
from .verify import verify_policy

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
