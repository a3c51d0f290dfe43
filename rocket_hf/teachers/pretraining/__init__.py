"""Pretraining of the embedded teacher: a small VGGT that learns depth and cameras from simulated RGB-D recordings."""
