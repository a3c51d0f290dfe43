"""The environment `metaworld` without settings stays the one of version 0.1.0, bit for bit.

default_world.json was written by `python -m tests.sims.test_default_world` before the first setting existed. Bits
depend on the renderer and on MuJoCo's version, so hashes are compared with the same ones only; with others, the last
state and the mean colors of 4 x 4 blocks of the images are compared.
"""

import hashlib
import json
import platform
import sys
from pathlib import Path

import numpy as np
import pytest

from rocket_hf.sims.suites import make_environment

FILE = Path(__file__).with_name("default_world.json")
SIZE, STEPS, BLOCKS = 32, 12, 4
STARTS = [
    (task, seed)
    for task in ("drawer-open-v3", "button-press-topdown-v3", "reach-v3", "peg-insert-side-v3")
    for seed in (0, 7, 100_003)
]


def describe_episode(environment, seed):
    """Return hashes of an episode of the expert, and the mean colors of blocks of its first images."""
    hashes = {name: hashlib.sha256() for name in ("images", "depth", "states", "actions")}
    environment.reset(seed)
    blocks = {name: mean_colors(image) for name, image in environment.observe().images.items()}
    for step in range(STEPS):
        observation, action = environment.observe(), environment.expert_action()
        for name, image in observation.images.items():
            hashes["images"].update(name.encode() + image.tobytes())
        hashes["states"].update(observation.state.tobytes())
        hashes["actions"].update(action.tobytes())
        for name, view in environment.depth_views().items() if step % 6 == 0 else ():
            arrays = (view.depth, view.intrinsics, view.pose)
            hashes["depth"].update(name.encode() + b"".join(array.tobytes() for array in arrays))
        environment.step(action)
    hexadecimal = {name: value.hexdigest() for name, value in hashes.items()}
    return {"hashes": hexadecimal, "blocks": blocks, "last_state": observation.state.tolist()}


def mean_colors(image):
    side = SIZE // BLOCKS
    return image.reshape(BLOCKS, side, BLOCKS, side, 3).mean(axis=(1, 3)).round(2).tolist()


def describe_platform(environment):
    import mujoco
    from OpenGL import GL

    environment.observe()  # makes the context current
    return [GL.glGetString(GL.GL_RENDERER).decode(), mujoco.__version__, platform.machine()]


def describe_all():
    episodes, machine = {}, None
    for task in dict.fromkeys(task for task, _ in STARTS):
        environment = make_environment("metaworld", task, SIZE)
        machine = describe_platform(environment)
        for seed in (seed for name, seed in STARTS if name == task):
            episodes[f"{task}/{seed}"] = describe_episode(environment, seed)
        environment.close()
    return {"platform": machine, "episodes": episodes}


@pytest.fixture(scope="module")
def described():
    return describe_all()


@pytest.mark.parametrize(("task", "seed"), STARTS)
def test_environment_without_settings_is_unchanged(task, seed, described):
    stored = json.loads(FILE.read_text())
    ours, theirs = (values["episodes"][f"{task}/{seed}"] for values in (described, stored))
    if described["platform"] == stored["platform"]:
        assert ours["hashes"] == theirs["hashes"]
    np.testing.assert_allclose(ours["last_state"], theirs["last_state"], atol=1e-4)
    for name, colors in theirs["blocks"].items():
        assert np.abs(np.array(ours["blocks"][name]) - colors).max() < 3, name
    assert list(ours["blocks"]) == list(theirs["blocks"])


if __name__ == "__main__":
    json.dump(describe_all(), sys.stdout, separators=(",", ":"))
