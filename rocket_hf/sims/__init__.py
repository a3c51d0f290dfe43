"""Simulators: environments, scripted experts, and recording of demonstrations as LeRobot datasets."""
