"""Benchmarks: `python -m rocket_hf.bench NAME [--json]`. They report ratios measured in one run, never pass or fail."""
