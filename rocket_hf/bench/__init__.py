"""Benchmarks: `python -m rocket_hf.bench NAME [--json]`. They report ratios between measurements of the same run."""
