"""Validation on held-out data during a run, and the choice of the best checkpoint."""

import torch

from .distributed.placement import predicting
from .optimization import averaged_weights
from .run import Run


@torch.no_grad()
def validate(run: Run) -> bool:
    """Validate the policy with its averaged weights, if there are any; record the metrics and the best step.

    Return whether the policy is the best of the run until now. Without held-out data, do nothing and return False.
    """
    if not run.task.has_validation_data:
        return False
    with averaged_weights(run.average, run.policy):
        run.policy.eval()
        with predicting(run.model):
            metrics = run.task.validate(run.progress.step)
        run.policy.train()
    return record_validation(run, metrics)


def record_validation(run: Run, metrics: dict[str, float]) -> bool:
    """Write the metrics to the journal; return whether their "error", if they have one, is the lowest of the run."""
    progress, error = run.progress, metrics.get("error")
    is_best = error is not None and (progress.best_error is None or error < progress.best_error)
    if is_best:
        progress.best_step, progress.best_error = progress.step, error
    run.journal.write_metrics(progress.step, **{f"validation/{name}": value for name, value in metrics.items()})
    return is_best
