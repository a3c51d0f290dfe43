"""Fixtures shared by the tests of simulators: MetaWorld environments and a recording."""

import pytest

from rocket_hf.sims.demonstrations import record
from rocket_hf.sims.metaworld import MetaWorldEnvironment


@pytest.fixture(scope="package")
def make_environment():
    """Factory of small MetaWorld environments, which creates each one once."""
    environments = {}

    def make(task, **options):
        key = (task, *options.items())
        if key not in environments:
            environments[key] = MetaWorldEnvironment(task, **({"image_size": 32} | options))
        return environments[key]

    yield make
    for environment in environments.values():
        environment.close()


@pytest.fixture(scope="package")
def recorded(tmp_path_factory):
    """Recording of two tasks, two episodes each, with depth: its folder and progress."""
    folder = tmp_path_factory.mktemp("recorded") / "demonstrations"
    progress = record(folder, "metaworld", TASKS, 2, image_size=32, depth=True, workers=1)
    return folder, progress


TASKS = ("handle-press-v3", "reach-v3")
