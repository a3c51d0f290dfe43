"""Settings of MetaWorld in lerobot's environment: the same names as in rocket-hf, and the same observations."""

from dataclasses import dataclass

import draccus
import numpy as np
import pytest

from rocket_hf.errors import UserError
from rocket_hf.sims.suites import make_environment

pytestmark = pytest.mark.needs_lerobot

NAME = "metaworld:heights=0..0.12,camera=random(20,10,0.1),cameras=corner2,state=object,inputs=xyz+rays"
TASK = "window-open-v3"


def parse_options(*options):
    """Parse options as `lerobot-eval` does."""
    from lerobot.envs import EnvConfig

    import lerobot_policy_rocket  # noqa: F401  (registers the environment)

    @dataclass
    class EvaluationOptions:
        env: EnvConfig

    return draccus.parse(EvaluationOptions, args=["--env.type=rocket_metaworld", *options]).env


def test_environment_of_lerobot_has_the_settings_observations():
    config = parse_options(f"--env.environment={NAME}", f"--env.task={TASK}", "--env.image_size=32")
    assert config.environment == NAME
    envs = config.create_envs(n_envs=1)["metaworld"][0]
    observed, _ = envs.reset(seed=[7])
    ours = make_environment(NAME, TASK, 32)
    ours.reset(7)
    expected = ours.observe()
    assert list(expected.images) == ["corner2", "corner2_xyz", "corner2_ray_direction", "corner2_ray_moment"]
    assert set(observed["pixels"]) == set(expected.images)
    for camera, image in expected.images.items():
        np.testing.assert_array_equal(observed["pixels"][camera][0], image)
    np.testing.assert_array_equal(observed["agent_pos"][0], expected.state)
    assert config.features["agent_pos"].shape == (7,)
    assert [key for key in config.features_map if key.startswith("pixels/")] == [
        f"pixels/{camera}" for camera in expected.images
    ]
    ours.close()
    envs.close()


def test_environment_of_lerobot_without_settings_is_unchanged():
    config = parse_options(f"--env.task={TASK}")
    assert [key for key in config.features_map if key.startswith("pixels/")] == ["pixels/corner2", "pixels/gripperPOV"]
    assert config.features["agent_pos"].shape == (4,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("metaworld:height=0.1", "metaworld has no setting 'height': did you mean 'heights'?"),
        ("libero", "rocket_metaworld runs metaworld only, not libero: use `rocket-hf eval` for it"),
    ],
)
def test_wrong_environment_name_raises_one_sentence(name, message):
    from lerobot_policy_rocket.simulated_env import RocketMetaWorldConfig

    with pytest.raises(UserError) as raised:
        RocketMetaWorldConfig(environment=name)
    assert str(raised.value) == message
