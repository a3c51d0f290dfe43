"""Choice of the OpenGL backend for offscreen rendering, and its error messages.

python -m pytest tests/sims/test_headless.py
"""

import sys

import pytest

from rocket_hf.commands import doctor
from rocket_hf.errors import UserError
from rocket_hf.sims import headless


@pytest.fixture
def server(monkeypatch):
    """Simulate a server: MUJOCO_GL is unset, there is no display, and mujoco is not imported."""
    for name in ("MUJOCO_GL", "DISPLAY"):
        monkeypatch.setenv(name, "")
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    monkeypatch.setattr(headless.sys, "platform", "linux")
    return monkeypatch


def only_libraries(*present):
    """Return a replacement for `load_library` on a machine that has only these libraries."""
    return lambda name: object() if name in present else None


def test_user_setting_is_kept(server):
    server.setenv("MUJOCO_GL", "osmesa")
    server.setattr(headless, "load_library", only_libraries())
    assert headless.use_offscreen_rendering() == "osmesa"


def test_offscreen_backend_exists_on_this_machine(server):
    assert headless.use_offscreen_rendering() in ("egl", "osmesa")


def test_osmesa_is_chosen_without_egl(server):
    server.setattr(headless, "load_library", only_libraries("libOSMesa.so.8"))
    assert headless.use_offscreen_rendering() == "osmesa"


def test_mujoco_default_is_kept_with_display_only(server):
    server.setenv("DISPLAY", ":0")
    server.setattr(headless, "load_library", only_libraries())
    assert headless.use_offscreen_rendering() == ""


def test_missing_opengl_raises_with_packages_to_install(server):
    server.setattr(headless, "load_library", only_libraries("libEGL.so.1"))  # without libGL, which PyOpenGL also needs
    with pytest.raises(
        UserError, match=r"`apt-get install libegl1 libgl1-mesa-dri libgl1`.*`apt-get install libosmesa6`"
    ):
        headless.use_offscreen_rendering()
    assert "libegl1" in doctor.simulator()


def test_importing_mujoco_first_raises(server):
    server.setitem(sys.modules, "mujoco", object())
    with pytest.raises(UserError, match="with MUJOCO_GL="):
        headless.use_offscreen_rendering()


def test_doctor_reports_backend_of_simulator():
    assert doctor.simulator().startswith("MuJoCo 3.")
    assert doctor.simulator().endswith("rendered with egl") or doctor.simulator().endswith("rendered with osmesa")
