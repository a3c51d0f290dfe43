"""Names of simulated environments that are put together from a study's settings, variants and evaluations."""

from functools import cache

from rocket_hf.errors import UserError
from rocket_hf.sims.settings import parse_environment_name, split_settings
from rocket_hf.sims.suites import select_tasks


@cache
def combine_environments(name: str, *options: str) -> str:
    """Return the name of an environment with further settings, which replace those of the same kind.

    Equal environments have equal names.
    """
    suite, _, text = name.partition(":")
    combined: dict[str, str] = {}
    for part in (text, *options):
        combined |= parse_options(part)
    joined = ",".join(f"{key}={value}" for key, value in combined.items())
    return parse_environment_name(f"{suite}:{joined}" if joined else suite).name


def parse_options(text: str) -> dict[str, str]:
    """Return the values of `KEY=VALUE,...` by key."""
    options = {}
    for part in filter(None, split_settings(text)):
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"an option of an environment has the form KEY=VALUE, got {part!r} in {text!r}")
        options[key] = value
    return options


def suite_name(name: str) -> str:
    return parse_environment_name(name).suite


@cache
def find_tasks(name: str, words: tuple[str, ...]) -> list[str]:
    """Return the tasks of an environment by their names and those of groups."""
    return select_tasks(suite_name(name), words)


@cache
def has_computed_images(name: str) -> bool:
    """Return whether an environment has images of geometry, which have no depth of their own to probe."""
    return bool(parse_environment_name(name).computed_images)


def check_tasks(name: str, tasks: list[str]) -> None:
    """Raise a UserError if the settings of an environment do not fit a task."""
    for task in tasks:
        parse_environment_name(name).require_task(task)
