"""Suites of simulated tasks, and environments by their names.

The functions take environment names, which are those of a suite, optionally with settings: see settings.py.
"""

from collections.abc import Sequence

from rocket_hf.errors import UserError

from .environment import Environment
from .names import require_known
from .settings import SUITES, parse_environment_name


def make_environment(name: str, task: str, image_size: int = 128, max_steps: int | None = None) -> Environment:
    """Create an environment. By default `max_steps` is the benchmark's limit, and for MetaWorld 200."""
    settings = parse_environment_name(name)
    suite = settings.suite
    require_known("rocket-hf", "suite", suite, SUITES)
    if suite == "libero":
        from .libero import LiberoEnvironment

        return LiberoEnvironment(task, image_size, max_steps)
    if suite == "libero-plus":
        from .libero_plus import LiberoPlusEnvironment

        return LiberoPlusEnvironment(task, image_size, max_steps)
    from .metaworld import MAX_STEPS, MetaWorldEnvironment

    return MetaWorldEnvironment(task, image_size, max_steps or MAX_STEPS, settings)


def task_names(name: str) -> list[str]:
    return sorted({task for tasks in task_groups(name).values() for task in tasks})


def task_groups(name: str) -> dict[str, list[str]]:
    """Return the tasks of each named group of a suite, such as "easy" or "libero_goal"."""
    suite = parse_environment_name(name).suite
    require_known("rocket-hf", "suite", suite, SUITES)
    if suite == "libero":
        from .libero_tasks import TASK_GROUPS as LIBERO

        return LIBERO
    if suite == "libero-plus":
        from .libero_plus_tasks import TASK_GROUPS as LIBERO_PLUS

        return LIBERO_PLUS
    from .metaworld_tasks import TASK_GROUPS as METAWORLD

    return {name: list(tasks) for name, tasks in METAWORLD.items()}


def require_expert(name: str, task: str) -> None:
    """Raise if the task has no scripted expert. All tasks of MetaWorld have one."""
    suite = parse_environment_name(name).suite
    if suite == "libero-plus":
        raise UserError("libero-plus is for evaluation only, its tasks have no scripted expert: record tasks of libero")
    if suite == "libero":
        from . import libero_expert

        libero_expert.require_libero_expert(task.partition("/")[0])


def select_tasks(name: str, words: Sequence[str]) -> list[str]:
    """Return the tasks of a list of task and group names, which may contain commas. `all` is the whole suite.

    Raise if the settings of the environment do not fit one of them.
    """
    settings = parse_environment_name(name)
    groups = task_groups(name) | {"all": task_names(name)}
    tasks: list[str] = []
    for task in filter(None, (part.strip() for word in words for part in word.split(","))):
        if task not in groups:
            require_known(settings.suite, "task", task, task_names(name))
        tasks += groups.get(task, [task])
    for task in tasks:
        settings.require_task(task)
    return list(dict.fromkeys(tasks))
