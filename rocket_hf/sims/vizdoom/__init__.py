"""Simulator for ROCKET-2 in ViZDoom's engine: rooms generated from a seed, with objects as goals."""
