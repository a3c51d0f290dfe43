"""Conversion of public checkpoints to this package's format, tensor by tensor (`rocket-hf convert`).

Each family of checkpoints has one file, which reads a folder in the public layout and returns the policy's
configuration, the renaming rules of its tensors and its processor. The rest is shared by all families: checkpoint.py
reads tensors, plan.py matches every tensor with a weight, write.py writes the folder.
"""
