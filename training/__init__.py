"""What exists only to train: the loop, its recipes, the data, LoRA, checkpoints and the accelerate configurations.

Nothing here is needed to use a published policy. `python training/train.py` and `accelerate launch training/train.py`
run the loop; everything else of this room is imported as `rocket_hf.training`.
"""

if __name__ != "rocket_hf.training":
    raise ImportError(
        f"this folder is the package rocket_hf.training, but it was imported as {__name__!r}, which would define every "
        "class a second time: write `import rocket_hf.training`, or run `python training/train.py`"
    )
