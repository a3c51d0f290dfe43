"""LIBERO-Plus's worlds: names against the benchmark's own table, pictures against the unperturbed world, noise against
its own step, an evaluation.

make test-libero
"""

import json
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from rocket_hf.commands import main
from rocket_hf.evaluation.report import REPORT
from rocket_hf.export.export_files import export_policy
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.sims.libero import LiberoEnvironment
from rocket_hf.sims.libero_plus import LiberoPlusEnvironment, drawn_by, noisy
from rocket_hf.sims.libero_plus_files import benchmark_names, import_libero_plus, plus_folder
from rocket_hf.sims.libero_plus_tasks import AXES, TASKS, variation
from rocket_hf.tiny import character_tokenizer, tiny_statistics

from ..evaluation.conftest import tiny_policy

pytestmark = pytest.mark.needs_libero
SIZE = 64
HARDLY = 1e-6


def start(environment, seed=7):
    """What is seen at a start, and where everything is."""
    try:
        environment.reset(seed)
        seen, positions = environment.observe(), environment._world.sim.data.qpos.copy()
        assert environment.step(np.zeros(7)) is False
        return seen, positions, environment.instruction
    finally:
        environment.close()


@pytest.fixture(scope="module")
def plain():
    """The first of LIBERO's tasks, which is the first that LIBERO-Plus varies along each axis."""
    return start(LiberoEnvironment("libero_spatial/0", SIZE))


def test_the_numbers_of_tasks_are_the_benchmarks():
    names = benchmark_names(plus_folder())
    for suite, counts in TASKS.items():
        axes = [variation(name).axis for name in names[suite]]
        assert tuple(axes.count(axis) for axis in AXES) == counts


def test_another_camera_sees_the_same_world(plain):
    seen, positions, instruction = start(LiberoPlusEnvironment("libero_spatial/camera/0", SIZE))
    np.testing.assert_allclose(positions, plain[1], atol=HARDLY)
    assert abs(seen.images["image"].astype(int) - plain[0].images["image"]).mean() > 10
    assert abs(seen.images["image2"].astype(int) - plain[0].images["image2"]).mean() < 2, "the wrist's stays"
    assert instruction == plain[2]


def test_other_words_are_all_that_is_other(plain):
    seen, positions, instruction = start(LiberoPlusEnvironment("libero_spatial/language/0", SIZE))
    np.testing.assert_allclose(positions, plain[1], atol=HARDLY)
    assert instruction != plain[2] and "language" not in instruction
    difference = abs(seen.images["image"].astype(int) - plain[0].images["image"])
    assert difference.mean() < 1, "the benchmark rounds where its camera stands"


def test_another_posture_of_the_arm_changes_nothing_else(plain):
    seen, positions, instruction = start(LiberoPlusEnvironment("libero_spatial/robot/0", SIZE))
    assert abs(positions[:7] - plain[1][:7]).max() > 0.02 and abs(seen.state - plain[0].state).max() > 0.02
    np.testing.assert_allclose(positions[9:], plain[1][9:], atol=1e-3)
    assert instruction == plain[2]


def test_moved_objects_stand_elsewhere(plain):
    seen, positions, instruction = start(LiberoPlusEnvironment("libero_spatial/layout-moved/0", SIZE))
    assert instruction == plain[2]
    assert seen.images["image"].shape == (SIZE, SIZE, 3)
    assert positions.shape != plain[1].shape or abs(positions[9:] - plain[1][9:]).max() > 0.01
    np.testing.assert_allclose(positions[:7], plain[1][:7], atol=0.05)


def test_axes_that_need_the_archive_are_refused():
    for axis in ("light", "background", "layout-added"):
        with pytest.raises(ValueError, match=f"LIBERO-Plus's axis {axis} needs models and textures of its own"):
            LiberoPlusEnvironment(f"libero_spatial/{axis}/0")


def test_noise_is_for_large_pictures_only():
    with pytest.raises(ValueError, match="pictures of 256 pixels: add --image-size 256"):
        LiberoPlusEnvironment("libero_spatial/noise/0", SIZE)


@pytest.mark.parametrize("noise", [1, 12, 23, 34, 45])
def test_noise_is_the_benchmarks_own(noise):
    """Its world blurs what it steps to; here a world that steps to a given picture, upside down as robosuite has it."""
    wrapper = import_libero_plus(plus_folder())
    picture = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    blurred = noisy(wrapper, noise, picture)
    np.testing.assert_array_equal(blurred, noisy(wrapper, noise, picture))
    inner = SimpleNamespace(step=lambda action: [{"agentview_image": picture[::-1, ::-1]}])
    with drawn_by(zlib.crc32(picture.tobytes())):
        wanted = wrapper.ControlEnv.step(SimpleNamespace(noise=noise, env=inner), None)[0]["agentview_image"]
    np.testing.assert_array_equal(blurred, wanted.astype(np.uint8)[::-1, ::-1])
    assert abs(blurred.astype(int) - picture).mean() > 10


def test_a_policy_is_evaluated_along_an_axis(tmp_path, capsys):
    robot = {"cameras": ["image", "image2"], "state_dim": 8, "action_dim": 7}
    model, _ = tiny_policy(**robot)
    statistics = tiny_statistics(model.config)
    processor = RocketProcessor.for_config(model.config, character_tokenizer(), statistics, max_prompt_length=128)
    policy = export_policy(model, processor, tmp_path / "tiny")
    command = ["eval", str(policy), "--env", "libero-plus", "--episodes", "1", "--max-steps", "4", "--image-size", "64"]
    tasks = ["libero_spatial/robot/0", "libero_goal/layout-moved/0"]
    assert main([*command, "--tasks", *tasks, "--out", str(tmp_path / "report")]) == 0
    report = (tmp_path / "report" / REPORT).read_text()
    assert json.loads(report) and all(task in report for task in tasks)
    capsys.readouterr()
    assert main([*command, "--tasks", "libero_spatial/light/0"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
