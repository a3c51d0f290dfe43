"""Evaluation of ROCKET-2 policies in ViZDoom: the goal is an object that is marked in another view of the same room."""
