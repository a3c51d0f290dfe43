"""Bootstrap confidence intervals of means."""

import numpy as np

RESAMPLES, CONFIDENCE = 2000, 0.95


def bootstrap_mean(values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean over the first axis and the lower and upper ends of its 95 % percentile interval."""
    generator = np.random.default_rng(seed)
    means = np.stack([
        values[generator.integers(len(values), size=len(values))].mean(axis=0) for _ in range(RESAMPLES)
    ])  # fmt: skip
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return values.mean(axis=0), low, high
