"""What a run leaves behind: the policy, ready to be used; and the batch that it failed on."""

from pathlib import Path
from statistics import mean
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .journal import read_journal
from .optimization import averaged
from .run import JOURNAL, POLICY, Run

LOSSES = ("action/", "alignment/", "auxiliary/")  # how their names begin


def export(run: Run) -> Path:
    """Writes the policy without the heads of training, and says where."""
    folder = run.out / POLICY
    with averaged(run.average, run.policy):  # until it is written: on a CPU it is made of the model's own tensors
        policy = run.system.finished()
        if run.accelerator.is_main_process:
            replace_former(folder)
            run.system.write(policy, folder)
    run.accelerator.wait_for_everyone()
    return folder


def summary(run: Run, folder: Path) -> str:
    """What the journal tells of the whole run, by its first and last tenth, and where its results are."""
    records = read_journal(run.out / JOURNAL)
    steps = [record for record in records if "loss" in record]
    rows = [("trained", f"{len(steps)} steps of {run.recipe.run.batch_size} samples")]
    for name in [name for name in steps[-1] if name.startswith(LOSSES)]:
        values = [record[name] for record in steps if name in record]
        count = max(1, len(values) // 10)
        rows.append(("", f"{name} {mean(values[:count]):.3f} -> {mean(values[-count:]):.3f}"))
    errors = {record["step"]: record["validation/error"] for record in records if "validation/error" in record}
    if errors:
        best = min(errors, key=lambda step: errors[step])
        last = run.system.tell_error(errors[max(errors)])
        rows.append(("validated", f"{last}; at best {errors[best]:.4g}, at step {best}"))
    rows += [("policy", str(folder)), ("checkpoint", str(run.checkpoints.path(run.progress.step)))]
    return "\n".join(f"{name:12}{text}" for name, text in rows)


def replace_former(folder: Path) -> None:
    """An earlier end of the same run wrote it; it is kept beside until the new one is there."""
    if folder.exists():
        number = 1
        while (kept := folder.with_name(f"{folder.name}-earlier-{number}")).exists():
            number += 1
        folder.rename(kept)


def save_batches(run: Run, batches: list[Any]) -> Path:
    """The batches of one step, as the workers made them, for whoever looks into why their loss is not finite."""
    step = f"{run.progress.step:08d}.rank{run.accelerator.process_index}"
    path = run.out / f"not-finite-{step}.safetensors"
    tensors: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        for key, value in batch.items():
            parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
            tensors |= {f"{number}.{key}.{name}": part for name, part in parts}
            if isinstance(value, torch.Tensor):
                tensors[f"{number}.{key}"] = value
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path
