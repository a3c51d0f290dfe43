"""Suites of simulated tasks, and environments by the names of their suite and task."""

from collections.abc import Sequence

from rocket_hf.errors import UserError

from .environment import Environment
from .names import require_known

SUITES = ("metaworld", "libero", "libero-plus")


def make_environment(suite: str, task: str, image_size: int = 128, max_steps: int | None = None) -> Environment:
    """Create an environment. By default `max_steps` is the benchmark's limit, and for MetaWorld 200."""
    require_known("rocket-hf", "suite", suite, SUITES)
    if suite == "libero":
        from .libero import LiberoEnvironment

        return LiberoEnvironment(task, image_size, max_steps)
    if suite == "libero-plus":
        from .libero_plus import LiberoPlusEnvironment

        return LiberoPlusEnvironment(task, image_size, max_steps)
    from .metaworld import MAX_STEPS, MetaWorldEnvironment

    return MetaWorldEnvironment(task, image_size, max_steps=max_steps or MAX_STEPS)


def task_names(suite: str) -> list[str]:
    return sorted({task for tasks in task_groups(suite).values() for task in tasks})


def task_groups(suite: str) -> dict[str, list[str]]:
    """Return the tasks of each named group of a suite, such as "easy" or "libero_goal"."""
    require_known("rocket-hf", "suite", suite, SUITES)
    if suite == "libero":
        from .libero_tasks import TASK_GROUPS as LIBERO

        return LIBERO
    if suite == "libero-plus":
        from .libero_plus_tasks import TASK_GROUPS as LIBERO_PLUS

        return LIBERO_PLUS
    from .metaworld_tasks import TASK_GROUPS as METAWORLD

    return {name: list(tasks) for name, tasks in METAWORLD.items()}


def require_expert(suite: str, task: str) -> None:
    """Raise if the task has no scripted expert. All tasks of MetaWorld have one."""
    if suite == "libero-plus":
        raise UserError("libero-plus is for evaluation only, its tasks have no scripted expert: record tasks of libero")
    if suite == "libero":
        from . import libero_expert

        libero_expert.require_libero_expert(task.partition("/")[0])


def select_tasks(suite: str, words: Sequence[str]) -> list[str]:
    """Return the tasks of a list of task and group names, which may contain commas. `all` is the whole suite."""
    groups = task_groups(suite) | {"all": task_names(suite)}
    tasks: list[str] = []
    for name in filter(None, (part.strip() for word in words for part in word.split(","))):
        if name not in groups:
            require_known(suite, "task", name, task_names(suite))
        tasks += groups.get(name, [name])
    return list(dict.fromkeys(tasks))
