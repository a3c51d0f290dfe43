"""What ships to the Hub beside the weights: configuration, policies, alignment head, processor.

These files need torch and transformers alone. A published repository holds copies of them, which transformers runs
with `trust_remote_code=True`; so they lie flat and import each other by `from .file import name` alone, and each entry
file (`configuration_rocket`, `modeling_rocket`, `processing_rocket`, `configuration_rocket2`, `modeling_rocket2`) names
every sibling it needs, even indirectly.
"""

if __name__ != "rocket_hf.modeling":
    raise ImportError(
        f"this folder is the package rocket_hf.modeling, but it was imported as {__name__!r}, which would define every "
        "class a second time: write `import rocket_hf.modeling`, or `from rocket_hf import RocketConfig`"
    )
