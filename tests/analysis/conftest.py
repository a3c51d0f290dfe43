"""Fixtures: two short tasks recorded with depth, and training runs of two steps."""

import pytest

from rocket_hf.rgbd_dataset import RgbdFrames
from rocket_hf.sims.demonstrations import record
from rocket_hf.study.small_policy import write_small_policy

from ..training.conftest import image_dataset, no_network, policies, run_training, set_options, teacher, tiny_run  # noqa: F401

TASKS = ("handle-press-v3", "reach-v3")


@pytest.fixture(scope="session")
def rgbd(tmp_path_factory):
    """Dataset with two episodes per task and cameras of 42 x 42 pixels."""
    folder = tmp_path_factory.mktemp("rgbd") / "demonstrations"
    record(folder, "metaworld", TASKS, 2, image_size=42, depth=True, workers=1)
    return folder


@pytest.fixture(scope="session")
def frames(rgbd):
    return RgbdFrames(rgbd)


@pytest.fixture(scope="session")
def base(rgbd, tmp_path_factory):
    """Untrained policy for the robot of the dataset."""
    folder = tmp_path_factory.mktemp("policies") / "base"
    write_small_policy(folder, rgbd)
    return folder


@pytest.fixture(scope="session")
def train(rgbd, base, teacher, tmp_path_factory):  # noqa: F811
    """Function that trains the tiny recipe for two steps and returns the run folder."""
    runs = tmp_path_factory.mktemp("runs")

    def run(name, **changes):
        if not (runs / name).exists():
            outcome = run_training(
                "--recipe", "tiny", "--policy", base, "--dataset", rgbd, "--teacher", teacher, "--out", runs / name,
                *set_options(run__steps=2, data__validation=0, **changes),
            )  # fmt: skip
            assert outcome.code == 0, outcome.stderr
        return runs / name

    return run


@pytest.fixture(scope="session")
def shared(train):
    return train("shared")


@pytest.fixture(scope="session")
def naive(tiny_run, tmp_path_factory):  # noqa: F811
    """Run of two steps with one projector per pair, on a generated dataset, which needs no simulator."""
    out = tmp_path_factory.mktemp("runs") / "naive"
    independent = {"projector": "independent", "nesting": "none", "nested_widths": None}
    changes = {f"alignment__{name}": value for name, value in independent.items()}
    tiny_run(out, run__steps=2, run__save_every=1, run__keep=2, **changes)
    return out
