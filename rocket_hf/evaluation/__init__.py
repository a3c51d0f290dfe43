"""Evaluation of policies in simulation: rollouts, success rates with confidence intervals, and reports."""
