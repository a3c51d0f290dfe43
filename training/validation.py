"""Validation on held-out data during a run, and the choice of the best checkpoint."""

import torch

from .distributed.placement import predicting
from .optimization import averaged_weights
from .run import Run


@torch.no_grad()
def validate(run: Run) -> None:
    """Validate the policy with its averaged weights, if there are any; record the metrics and the best step."""
    if not run.task.has_validation_data:
        return
    with averaged_weights(run.average, run.policy):
        run.policy.eval()
        with predicting(run.model):
            metrics = run.task.validate(run.progress.step)
        run.policy.train()
    record_validation(run, metrics)


def record_validation(run: Run, metrics: dict[str, float]) -> None:
    progress, error = run.progress, metrics.get("error")
    if error is not None and (progress.best_error is None or error < progress.best_error):
        progress.best_step, progress.best_error = progress.step, error
    run.journal.write_metrics(progress.step, **{f"validation/{name}": value for name, value in metrics.items()})
