"""What held-out data say of the policy, now and then, and which checkpoint is the best by that."""

import torch

from .distributed.placement import predicting
from .optimization import averaged
from .run import Run


@torch.no_grad()
def validate(run: Run) -> None:
    """Of the average of the weights where one is kept."""
    if not run.system.validates:
        return
    with averaged(run.average, run.policy):
        run.policy.eval()
        with predicting(run.model):
            found = run.system.validate(run)
        run.policy.train()
    remember(run, found)


def remember(run: Run, found: dict[str, float]) -> None:
    progress, error = run.progress, found.get("error")
    if error is not None and (progress.best_error is None or error < progress.best_error):
        progress.best_step, progress.best_error = progress.step, error
    run.journal.tell(progress.step, **{f"validation/{name}": value for name, value in found.items()})
