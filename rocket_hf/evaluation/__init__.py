"""Policies in simulated worlds: rollouts, success rates with intervals, reports."""
