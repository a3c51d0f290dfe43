"""Prompts of a policy: the template, how it treats tasks, and the bins of the state."""

from collections.abc import Sequence
from string import Formatter

import torch
from torch import Tensor

from .errors import UserError
from .finite_checks import finite_flags, raise_if_not_finite

STATE_BINS = 256  # over [-1, 1], for a state that is part of the prompt
FIELDS = ("task", "task_lower", "state")
# How a task is inserted (see `PromptTemplate`).
TASK_TEXTS = ("cleaned", "unchanged")


class PromptTemplate:
    """Template that turns a task and a normalized state into a prompt.

    Args:
        template: Text with the placeholders {task}, {task_lower} and {state}. Format specifications are rejected: they
            come from a downloaded file, and a width such as {task:>999999999} would fill the memory.
        task_text: "cleaned" strips the task and replaces underscores and line breaks by spaces, as pi0.5 does;
            "unchanged" inserts it as it is, as pi0, SmolVLA and OpenVLA do.
    """

    def __init__(self, template: str, task_text: str):
        if task_text not in TASK_TEXTS:
            raise UserError(f"task_text must be one of {', '.join(TASK_TEXTS)}, got {task_text!r}")
        self.template, self.task_text = template, task_text
        self.reads_state = "state" in check_template(template)

    def fill(self, tasks: Sequence[str], state: Tensor | None) -> list[str]:
        """Return the prompt of each task. The bins of the normalized state (B, S) replace {state}, if it is there."""
        bins: list[list[int]] = [[] for _ in tasks]
        if self.reads_state:
            if state is None:
                raise UserError("the prompt of this policy contains the state: pass `state`")
            bins = state_bins(state)
        texts = [self.prepare(task) for task in tasks]
        return [
            self.template.format(task=text, task_lower=text.lower(), state=" ".join(map(str, row)))
            for text, row in zip(texts, bins, strict=True)
        ]

    def prepare(self, task: str) -> str:
        """Return a task as it is inserted.

        An unchanged task loses its final line break if the template adds one there, as in lerobot.
        """
        if self.task_text == "cleaned":
            return task.strip().replace("_", " ").replace("\n", " ")
        return task.removesuffix("\n") if self.template.endswith("{task}\n") else task


def check_template(template: str) -> set[str]:
    """Return the placeholders of a template; raise `UserError` if it has others than FIELDS, or format options."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"prompt_template {template[:80]!r} cannot be parsed ({error}): correct it") from error
    fields = {field for _, field, _, _ in parts if field is not None}
    if not fields <= set(FIELDS) or any(specification or conversion for _, _, specification, conversion in parts):
        raise UserError(
            f"prompt_template may contain {', '.join(f'{{{field}}}' for field in FIELDS)} without format options, got "
            f"{template[:80]!r}"
        )
    return fields


def state_bins(state: Tensor) -> list[list[int]]:
    """Return the bin, from 0 to STATE_BINS - 1, of each dimension of normalized states (B, S).

    Values above 1 are in the last bin; values below -1 get the number -1, as in openpi. Even NaN would be in some bin,
    so a state that is not finite is an error.
    """
    values = state.double().cpu()
    raise_if_not_finite(finite_flags({"state": values}))
    edges = torch.linspace(-1, 1, STATE_BINS + 1, dtype=torch.float64)[:-1]
    return (torch.bucketize(values, edges, right=True) - 1).tolist()
