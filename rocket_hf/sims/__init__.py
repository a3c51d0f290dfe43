"""Simulated worlds: environments, scripted experts, and demonstrations as LeRobot datasets."""
