"""Whole experiments, made of the commands that a user would type."""
