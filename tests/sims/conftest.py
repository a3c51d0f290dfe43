"""Environments and recordings that several tests share."""

import pytest

from rocket_hf.sims.demonstrations import record
from rocket_hf.sims.metaworld import MetaWorldEnvironment


@pytest.fixture(scope="package")
def make():
    """Environments by task, small and each made once."""
    made = {}

    def find(task, **how):
        key = (task, *how.items())
        if key not in made:
            made[key] = MetaWorldEnvironment(task, **({"image_size": 32} | how))
        return made[key]

    yield find
    for environment in made.values():
        environment.close()


@pytest.fixture(scope="package")
def recorded(tmp_path_factory):
    """Two tasks, two episodes each, with depth."""
    folder = tmp_path_factory.mktemp("recorded") / "demonstrations"
    said = record(folder, "metaworld", TASKS, 2, image_size=32, depth=True, workers=1)
    return folder, said


TASKS = ("handle-press-v3", "reach-v3")
