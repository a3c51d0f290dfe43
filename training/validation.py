"""How far the predicted actions are from the demonstrated ones, in robot units, on episodes that are held out."""

import torch
from torch import Tensor

from .data.batches import RobotBatch
from .optimization import averaged
from .placement import predicting
from .run import Run

OBSERVED = ("images", "camera_mask", "input_ids", "attention_mask", "state", "noise")


@torch.no_grad()
def validate(run: Run) -> None:
    """Writes the mean distance and that of each dimension, of the average of the weights where one is kept."""
    if run.validation is None:
        return
    sums = torch.zeros(2, run.policy.config.action_dim, device=run.accelerator.device)  # distances, counts
    with averaged(run.average, run.policy):
        run.policy.eval()
        with predicting(run.model):
            for raw in run.validation:
                sums += distances(run, raw)
        run.policy.train()
    distance, count = run.accelerator.reduce(sums, "sum")
    error = distance / count
    remember(run, error.mean().item(), error.tolist())


def distances(run: Run, raw: RobotBatch) -> Tensor:
    """For each dimension, the sum of the absolute distances over the steps that exist, and their number: (2, A)."""
    batch, _, _ = run.preparation.student(raw)
    with run.accelerator.autocast():
        predicted = run.policy.predict_action_chunk(**{key: batch[key] for key in OBSERVED if key in batch})  # type: ignore
    unnormalize = run.processor.unnormalize_actions
    distance = (unnormalize(predicted.float()) - unnormalize(batch["actions"])).abs()  # (B, chunk, A)
    exists = (~batch["action_is_pad"])[..., None].expand_as(distance)
    return torch.stack([(distance * exists).sum((0, 1)), exists.float().sum((0, 1))])


def remember(run: Run, error: float, by_dimension: list[float]) -> None:
    progress = run.progress
    if progress.best_error is None or error < progress.best_error:
        progress.best_step, progress.best_error = progress.step, error
    names = run.policy.config.action_names or [str(number) for number in range(len(by_dimension))]
    rows = {f"validation/{name}": round(value, 8) for name, value in zip(names, by_dimension, strict=True)}
    run.journal.tell(progress.step, **{"validation/error": error}, **rows)
