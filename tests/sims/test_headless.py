"""Which OpenGL is chosen, and what is said where there is none.

python -m pytest tests/sims/test_headless.py
"""

import sys

import pytest

from rocket_hf.commands import doctor
from rocket_hf.sims import headless


@pytest.fixture
def unset(monkeypatch):
    """As a server is: no choice made, no display, mujoco not imported."""
    for name in ("MUJOCO_GL", "DISPLAY"):
        monkeypatch.setenv(name, "")
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    monkeypatch.setattr(headless.sys, "platform", "linux")
    return monkeypatch


def libraries(*present):
    """A loader of a machine that has these libraries alone."""
    return lambda name: object() if name in present else None


def test_what_the_user_has_set_stays(unset):
    unset.setenv("MUJOCO_GL", "osmesa")
    unset.setattr(headless, "loads", libraries())
    assert headless.use_offscreen_rendering() == "osmesa"


def test_this_machine_draws_with_what_the_choice_says(unset):
    assert headless.use_offscreen_rendering() in ("egl", "osmesa")


def test_osmesa_where_egl_is_missing(unset):
    unset.setattr(headless, "loads", libraries("libOSMesa.so.8"))
    assert headless.use_offscreen_rendering() == "osmesa"


def test_mujocos_own_choice_where_there_is_a_display_alone(unset):
    unset.setenv("DISPLAY", ":0")
    unset.setattr(headless, "loads", libraries())
    assert headless.use_offscreen_rendering() == ""


def test_packages_are_named_where_nothing_can_draw(unset):
    unset.setattr(headless, "loads", libraries("libEGL.so.1"))  # without libGL, which PyOpenGL needs beside it
    with pytest.raises(
        ValueError, match=r"`apt-get install libegl1 libgl1-mesa-dri libgl1`.*`apt-get install libosmesa6`"
    ):
        headless.use_offscreen_rendering()
    assert "libegl1" in doctor.simulator()


def test_a_choice_that_comes_too_late_is_told(unset):
    unset.setitem(sys.modules, "mujoco", object())
    with pytest.raises(ValueError, match="set MUJOCO_GL="):
        headless.use_offscreen_rendering()


def test_doctor_says_what_the_simulator_draws_with():
    assert doctor.simulator().startswith("MuJoCo 3.")
    assert doctor.simulator().endswith("drawn by egl") or doctor.simulator().endswith("drawn by osmesa")
