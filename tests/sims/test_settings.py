"""Names of environments with settings: parsing, canonical form, draws, and error messages."""

import numpy as np
import pytest

from rocket_hf.errors import UserError
from rocket_hf.sims.settings import SUITES, EnvironmentSettings, parse_environment_name
from rocket_hf.sims.suites import select_tasks


@pytest.mark.parametrize(
    "name",
    [
        *SUITES,
        "metaworld:heights=0..0.12",
        "metaworld:heights=0.06",
        "metaworld:camera=random(20,10,0.1)",
        "metaworld:camera=random(20,10,0.1,0.05)",
        "metaworld:camera=fixed(-20,0,0.1)",
        "metaworld:cameras=corner2",
        "metaworld:state=object",
        "metaworld:inputs=xyz+rays+depth+dummy",
        "metaworld:heights=0..0.12,camera=random(20,10,0.1),cameras=corner2,state=none,inputs=xyz",
    ],
)
def test_name_of_parsed_settings_is_the_parsed_name(name):
    assert parse_environment_name(name).name == name


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("metaworld:state=robot", "metaworld"),
        ("metaworld:cameras=corner2+gripperPOV", "metaworld"),
        ("metaworld:heights=0", "metaworld"),
        ("metaworld:heights=0..0,camera=fixed(0,-0,0)", "metaworld"),
        ("metaworld:camera=random(0,0,0,0)", "metaworld"),
        ("metaworld:cameras=corner2,heights=0.00..0.120", "metaworld:heights=0..0.12,cameras=corner2"),
        ("metaworld:inputs=rays+xyz", "metaworld:inputs=xyz+rays"),
        ("metaworld:camera=random( 20, 10, 0.10, 0)", "metaworld:camera=random(20,10,0.1)"),
    ],
)
def test_equal_environments_have_equal_names(name, canonical):
    assert parse_environment_name(name).name == canonical
    assert parse_environment_name(name) == parse_environment_name(canonical)


def test_settings_name_images_and_states():
    settings = parse_environment_name("metaworld:inputs=xyz+rays+depth+dummy,state=object")
    assert settings.image_names == (
        "corner2", "gripperPOV", "corner2_xyz", "corner2_ray_direction", "corner2_ray_moment", "corner2_gray_depth",
        "corner2_dummy",
    )  # fmt: skip
    assert settings.state_names == ("x", "y", "z", "gripper", "object_x", "object_y", "object_z")
    assert parse_environment_name("metaworld:state=none").state_names == ("x", "y", "z", "gripper")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("metaworl:heights=0..0.1", "rocket-hf has no suite 'metaworl': did you mean 'metaworld'?"),
        ("metaworld:height=0..0.1", "metaworld has no setting 'height': did you mean 'heights'?"),
        ("metaworld:heights", "has a setting without a value, 'heights': write it as heights=0..0.12"),
        ("metaworld:", "has a setting without a value, ''"),
        ("metaworld:heights=0.12..0", "the range heights=0.12..0 is reversed: write heights=0..0.12"),
        ("metaworld:heights=-0.1..0", "heights takes numbers from 0 to 0.3, got '-0.1'"),
        ("metaworld:heights=0..1", "heights takes numbers from 0 to 0.3, got '1'"),
        ("metaworld:heights=nan", "heights takes numbers from 0 to 0.3, got 'nan'"),
        ("metaworld:heights=0.1,heights=0.2", "contains heights twice: remove one of them"),
        ("metaworld:cameras=corner4", "metaworld has no camera 'corner4': did you mean 'corner"),
        ("metaworld:cameras=corner2+corner2", "camera 'corner2' is named more than once"),
        ("metaworld:camera=corner2", "camera takes random(AZIMUTH,ELEVATION,DISTANCE[,AIM]), such as"),
        ("metaworld:camera=fixed(10)", "fixed(AZIMUTH,ELEVATION,DISTANCE), got 'fixed(10)'"),
        ("metaworld:camera=fixed(10,0,0,0.1)", "got 'fixed(10,0,0,0.1)'"),
        ("metaworld:camera=random(-20,0,0)", "azimuth of camera takes numbers from 0 to 180, got '-20'"),
        ("metaworld:camera=fixed(0,40,0)", "elevation of camera takes numbers from -30 to 30, got '40'"),
        ("metaworld:camera=fixed(10,0,0),cameras=gripperPOV", "camera=fixed(10,0,0) moves corner2: add it to cameras"),
        ("metaworld:state=objects", "metaworld has no state 'objects': did you mean 'object'?"),
        ("metaworld:inputs=xzy", "metaworld has no input 'xzy': did you mean 'xyz'?"),
        ("metaworld:inputs=xyz,cameras=gripperPOV", "inputs=xyz needs a third-person camera: add corner2 to cameras"),
        ("libero:heights=0..0.1", "libero has no setting 'heights': only metaworld has settings, remove it"),
        ("vizdoom:inputs=depth", "vizdoom has no setting 'inputs': only metaworld has settings, remove it"),
    ],
)
def test_wrong_name_raises_one_sentence(name, message):
    with pytest.raises(UserError) as raised:
        parse_environment_name(name)
    assert message in str(raised.value) and len(str(raised.value).splitlines()) == 1


def test_objects_that_would_fall_cannot_be_raised():
    assert select_tasks("metaworld:heights=0..0.12", ["drawer-open-v3"]) == ["drawer-open-v3"]
    with pytest.raises(UserError, match="heights cannot raise the objects of push-v3: choose tasks of button-press"):
        select_tasks("metaworld:heights=0..0.12", ["drawer-open-v3", "push-v3"])
    assert select_tasks("metaworld:state=none", ["push-v3"]) == ["push-v3"]


def test_draws_depend_on_task_and_seed_and_not_on_other_settings():
    alone = parse_environment_name("metaworld:heights=0.02..0.12")
    both = parse_environment_name("metaworld:heights=0.02..0.12,camera=random(20,10,0.1,0.05)")
    heights = [alone.draw_height("drawer-open-v3", seed) for seed in range(500)]
    assert heights == [both.draw_height("drawer-open-v3", seed) for seed in range(500)]
    assert not set(heights) & {alone.draw_height("door-close-v3", seed) for seed in range(500)}
    assert 0.02 < min(heights) < 0.025 and 0.115 < max(heights) < 0.12
    motions = [both.draw_camera_motion("drawer-open-v3", seed) for seed in range(500)]
    assert motions == [both.draw_camera_motion("drawer-open-v3", seed) for seed in range(500)]
    table = np.array([[each.azimuth, each.elevation, each.distance, *each.aim] for each in motions])
    limits = np.array([20, 10, 0.1, 0.05, 0.05, 0.05])
    assert (abs(table) < limits).all() and (abs(table).max(axis=0) > 0.97 * limits).all()
    assert (abs(np.corrcoef(table.T) - np.eye(6)) < 0.15).all()
    without_aim = parse_environment_name("metaworld:camera=random(20,10,0.1)").draw_camera_motion("drawer-open-v3", 3)
    assert (without_aim.azimuth, without_aim.distance) == (motions[3].azimuth, motions[3].distance)
    assert without_aim.aim == (0, 0, 0)


def test_default_settings_draw_nothing():
    settings = EnvironmentSettings("metaworld")
    assert settings.draw_height("drawer-open-v3", 3) == 0
    motion = settings.draw_camera_motion("drawer-open-v3", 3)
    assert (motion.azimuth, motion.elevation, motion.distance, motion.aim) == (0, 0, 0, (0, 0, 0))
