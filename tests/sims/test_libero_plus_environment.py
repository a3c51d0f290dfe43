"""Environments of LIBERO-Plus: task names, images and noise, compared with the benchmark and LIBERO; an evaluation.

make test-libero
"""

import json
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from rocket_hf.commands import main
from rocket_hf.errors import UserError
from rocket_hf.evaluation.report import REPORT
from rocket_hf.export.policy_folder import export_policy
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.sims.libero import LiberoEnvironment
from rocket_hf.sims.libero_plus import LiberoPlusEnvironment, add_noise, numpy_seed
from rocket_hf.sims.libero_plus_files import benchmark_names, import_libero_plus, plus_folder
from rocket_hf.sims.libero_plus_tasks import AXES, TASKS, parse_variation
from rocket_hf.tiny import character_tokenizer, tiny_statistics

from ..evaluation.conftest import tiny_policy

pytestmark = pytest.mark.needs_libero
SIZE = 64
TOLERANCE = 1e-6


def reset_and_close(environment, seed=7):
    """Return the observation, the joint positions and the instruction after a reset."""
    try:
        environment.reset(seed)
        observation, positions = environment.observe(), environment._control_env.sim.data.qpos.copy()
        assert environment.step(np.zeros(7)) is False
        return observation, positions, environment.instruction
    finally:
        environment.close()


@pytest.fixture(scope="module")
def unperturbed():
    """First task of LIBERO, which is also the first varied task of each axis."""
    return reset_and_close(LiberoEnvironment("libero_spatial/0", SIZE))


def test_numbers_of_tasks_equal_benchmark():
    names = benchmark_names(plus_folder())
    for suite, counts in TASKS.items():
        axes = [parse_variation(name).axis for name in names[suite]]
        assert tuple(axes.count(axis) for axis in AXES) == counts


def test_camera_axis_changes_only_the_view(unperturbed):
    observation, positions, instruction = reset_and_close(LiberoPlusEnvironment("libero_spatial/camera/0", SIZE))
    np.testing.assert_allclose(positions, unperturbed[1], atol=TOLERANCE)
    assert abs(observation.images["image"].astype(int) - unperturbed[0].images["image"]).mean() > 10
    assert abs(observation.images["image2"].astype(int) - unperturbed[0].images["image2"]).mean() < 2, (
        "the wrist camera is unchanged"
    )
    assert instruction == unperturbed[2]


def test_language_axis_changes_only_the_instruction(unperturbed):
    observation, positions, instruction = reset_and_close(LiberoPlusEnvironment("libero_spatial/language/0", SIZE))
    np.testing.assert_allclose(positions, unperturbed[1], atol=TOLERANCE)
    assert instruction != unperturbed[2] and "language" not in instruction
    difference = abs(observation.images["image"].astype(int) - unperturbed[0].images["image"])
    assert difference.mean() < 1, "the benchmark rounds its camera's position"


def test_robot_axis_changes_only_the_arm(unperturbed):
    observation, positions, instruction = reset_and_close(LiberoPlusEnvironment("libero_spatial/robot/0", SIZE))
    assert (
        abs(positions[:7] - unperturbed[1][:7]).max() > 0.02
        and abs(observation.state - unperturbed[0].state).max() > 0.02
    )
    np.testing.assert_allclose(positions[9:], unperturbed[1][9:], atol=1e-3)
    assert instruction == unperturbed[2]


def test_layout_axis_moves_objects(unperturbed):
    observation, positions, instruction = reset_and_close(LiberoPlusEnvironment("libero_spatial/layout-moved/0", SIZE))
    assert instruction == unperturbed[2]
    assert observation.images["image"].shape == (SIZE, SIZE, 3)
    assert positions.shape != unperturbed[1].shape or abs(positions[9:] - unperturbed[1][9:]).max() > 0.01
    np.testing.assert_allclose(positions[:7], unperturbed[1][:7], atol=0.05)


def test_axis_without_its_models_raises():
    for axis in ("light", "background", "layout-added"):
        with pytest.raises(UserError, match=f"the axis {axis} of LIBERO-Plus needs additional models and textures"):
            LiberoPlusEnvironment(f"libero_spatial/{axis}/0")


def test_noise_with_other_image_size_raises():
    with pytest.raises(UserError, match="images of 256 pixels: add --image-size 256"):
        LiberoPlusEnvironment("libero_spatial/noise/0", SIZE)


@pytest.mark.parametrize("noise", [1, 12, 23, 34, 45])
def test_noise_equals_benchmark(noise):
    """The benchmark adds noise in its step. Here its step returns a given image, in robosuite's orientation."""
    wrapper = import_libero_plus(plus_folder())
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    noisy = add_noise(wrapper, noise, image)
    np.testing.assert_array_equal(noisy, add_noise(wrapper, noise, image))
    inner = SimpleNamespace(step=lambda action: [{"agentview_image": image[::-1, ::-1]}])
    with numpy_seed(zlib.crc32(image.tobytes())):
        expected = wrapper.ControlEnv.step(SimpleNamespace(noise=noise, env=inner), None)[0]["agentview_image"]
    np.testing.assert_array_equal(noisy, expected.astype(np.uint8)[::-1, ::-1])
    assert abs(noisy.astype(int) - image).mean() > 10


def test_policy_is_evaluated_on_axes(tmp_path, capsys):
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
