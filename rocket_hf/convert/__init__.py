"""Public checkpoints to ours, tensor by tensor: one file a family, `rocket-hf convert` in front.

A family reads a folder of its public layout and says which policy it is, how its tensors are called here, and what its
processor was. The rest is the same for all: checkpoint.py reads, plan.py checks, write.py writes.
"""
