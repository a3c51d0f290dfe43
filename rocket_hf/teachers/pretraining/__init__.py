"""How the embedded teacher was made: a small VGGT learns depth and cameras from simulated RGB-D with poses."""
