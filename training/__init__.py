"""Training: the loop, recipes, data, LoRA, checkpoints and accelerate configurations.

Nothing in this package is needed to use a published policy. `accelerate launch training/train.py` runs the loop from a
checkout; everything else is imported as `rocket_hf.training`.
"""

if __name__ != "rocket_hf.training":
    raise ImportError(
        f"this folder is the package rocket_hf.training, but it was imported as {__name__!r}, which would define every "
        "class a second time: write `import rocket_hf.training`, or run `python training/train.py`"
    )
