"""Environments by the names of their suite and task."""

from .contract import Environment
from .names import require_known

SUITES = ("metaworld",)


def make_environment(suite: str, task: str, image_size: int = 128, max_steps: int | None = None) -> Environment:
    """`max_steps` None: as many as the suite's experts need with room to spare."""
    require_known("rocket_hf", "suite", suite, SUITES)
    from .metaworld import MAX_STEPS, MetaWorldEnvironment

    return MetaWorldEnvironment(task, image_size, max_steps=max_steps or MAX_STEPS)


def task_names(suite: str) -> list[str]:
    require_known("rocket_hf", "suite", suite, SUITES)
    from .metaworld_tasks import INSTRUCTIONS

    return sorted(INSTRUCTIONS)
