"""A world for goals that are pointed at: rooms made from a seed, in ViZDoom's engine."""
