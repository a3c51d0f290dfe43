"""Files that are published on the Hub beside the weights: configurations, policies, alignment head and processor.

They need only torch and transformers. A published repository holds copies of them, which transformers runs with
`trust_remote_code=True`. Therefore the folder is flat, files import each other only by `from .file import name`, and
each entry file (`configuration_rocket`, `modeling_rocket`, `processing_rocket`, `configuration_rocket2`,
`modeling_rocket2`) imports a name from every sibling that it needs, even indirectly: transformers copies only the files
that an entry file imports.
"""

if __name__ != "rocket_hf.modeling":
    raise ImportError(
        f"this folder is the package rocket_hf.modeling, but it was imported as {__name__!r}, which would define every "
        "class a second time: write `import rocket_hf.modeling`, or `from rocket_hf import RocketConfig`"
    )
