"""Export of a run: the policy for inference, a summary of the training, and the batch of a failed step."""

from pathlib import Path
from statistics import mean
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rocket_hf.files import create_folder, write_atomically

from .distributed.agreement import shared_errors
from .journal import read_journal
from .optimization import averaged_weights
from .run import JOURNAL, POLICY, Run

LOSS_PREFIXES = ("action/", "alignment/", "auxiliary/")


def export(run: Run) -> Path:
    """Write the policy without its training-only heads; return its folder."""
    folder = run.out / POLICY
    with averaged_weights(run.average, run.policy):  # until it is written: on a CPU it shares the model's tensors
        policy = run.task.policy_for_export()
        with shared_errors():
            if run.accelerator.is_main_process:
                move_existing_policy(folder)
                run.task.save_policy(policy, folder)
    return folder


def summary(run: Run, folder: Path) -> str:
    """Return a table of the run: losses of the first and last tenth of its steps, validation errors, and its files."""
    records = read_journal(run.out / JOURNAL)
    steps = [record for record in records if "loss" in record]
    rows = [("trained", f"{run.progress.step} steps of {run.recipe.run.batch_size} samples")]
    for name in [name for name in (steps[-1] if steps else ()) if name.startswith(LOSS_PREFIXES)]:
        values = [record[name] for record in steps if name in record]
        count = max(1, len(values) // 10)
        rows.append(("", f"{name} {mean(values[:count]):.3f} -> {mean(values[-count:]):.3f}"))
    errors = {record["step"]: record["validation/error"] for record in records if "validation/error" in record}
    if errors:
        best_step = min(errors, key=lambda step: errors[step])
        last_error = run.task.describe_error(errors[max(errors)])
        rows.append(("validated", f"{last_error}; best {errors[best_step]:.4g}, at step {best_step}"))
    rows += [
        ("policy", f"{folder}, {describe_exported_step(run)}"),
        ("checkpoint", str(run.checkpoints.path(run.progress.step))),
    ]
    return "\n".join(f"{name:12}{text}" for name, text in rows)


def describe_exported_step(run: Run) -> str:
    """Return which step the exported policy is of, and where the best policy is if that is another one."""
    step, best_step = run.progress.step, run.progress.best_step
    if best_step is None:
        return f"of the last step, {step}"
    if best_step == step:
        return f"of the last step, {step}, which is the best"
    best = run.checkpoints.path(best_step)
    return f"of the last step, {step}; the best policy, of step {best_step}, can be published from {best}"


def move_existing_policy(folder: Path) -> None:
    """Rename the policy that an earlier end of this run exported, so that the new one does not overwrite it."""
    if folder.exists():
        number = 1
        while (target := folder.with_name(f"{folder.name}-earlier-{number}")).exists():
            number += 1
        folder.rename(target)


def save_batches(run: Run, batches: list[Any]) -> Path:
    """Save the batches of a step as the data loader returned them, to find out why its loss is not finite."""
    step = f"{run.progress.step:08d}.rank{run.accelerator.process_index}"
    path = run.out / f"not-finite-{step}.safetensors"
    tensors: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        for key, value in batch.items():
            parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
            tensors |= {f"{number}.{key}.{name}": part for name, part in parts}
            if isinstance(value, torch.Tensor):
                tensors[f"{number}.{key}"] = value
    create_folder(path.parent)  # It may exist on the machine of the main process only.
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(contiguous, temporary))
    return path
