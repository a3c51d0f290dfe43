"""Two short tasks recorded with depth, and a tiny policy trained on them for two steps; made once."""

import pytest

from rocket_hf.experiments.small_policy import write_small_policy
from rocket_hf.sims.demonstrations import record
from rocket_hf.sims.rgbd import RgbdFrames
from rocket_hf.tiny import write_tiny_vggt

from ..training.conftest import run_training, settings

TASKS = ("handle-press-v3", "reach-v3")


@pytest.fixture(scope="session")
def rgbd(tmp_path_factory):
    """Two episodes of each task, cameras of 42 x 42 pixels."""
    folder = tmp_path_factory.mktemp("rgbd") / "demonstrations"
    record(folder, "metaworld", TASKS, 2, image_size=42, depth=True, workers=1)
    return folder


@pytest.fixture(scope="session")
def frames(rgbd):
    return RgbdFrames(rgbd)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    return write_tiny_vggt(tmp_path_factory.mktemp("teachers") / "vggt")


@pytest.fixture(scope="session")
def base(rgbd, tmp_path_factory):
    """An untrained policy for the robot of the recordings."""
    folder = tmp_path_factory.mktemp("policies") / "base"
    write_small_policy(folder, rgbd)
    return folder


@pytest.fixture(scope="session")
def train(rgbd, base, teacher, tmp_path_factory):
    """Two steps of a recipe, each saved; aligned by projectors of its own or by the shared one."""
    runs = tmp_path_factory.mktemp("runs")

    def run(name, **changes):
        if not (runs / name).exists():
            outcome = run_training(
                "--recipe", "tiny", "--policy", base, "--dataset", rgbd, "--teacher", teacher, "--out", runs / name,
                *settings(run__steps=2, run__save_every=1, run__keep=2, data__validation=0, **changes),
            )  # fmt: skip
            assert outcome.code == 0, outcome.stderr
        return runs / name

    return run


@pytest.fixture(scope="session")
def shared(train):
    return train("shared")


@pytest.fixture(scope="session")
def naive(train):
    return train("naive", alignment__projector="independent", alignment__nesting="none", alignment__nested_widths=None)
