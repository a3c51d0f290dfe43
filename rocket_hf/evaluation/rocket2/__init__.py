"""Policies after a goal that is marked in another view of the same room: ROCKET-2 in ViZDoom."""
