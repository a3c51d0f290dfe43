"""Offscreen rendering with OpenGL: the simulators open no window, so that they run on servers without a display.

MuJoCo reads the environment variable MUJOCO_GL once, when it is imported, and by default requires a window. A value
that the user has set is kept.
"""

import ctypes
import os
import sys
from typing import Any

from rocket_hf.errors import UserError

INSTALL_OPENGL = (
    "run `apt-get install libegl1 libgl1-mesa-dri libgl1` (Debian and Ubuntu), or `apt-get install libosmesa6`"
)
EGL_PLATFORM_DEVICE = 0x313F  # EGL_PLATFORM_DEVICE_EXT in the Khronos registry
MAX_DEVICES = 16


def import_mujoco() -> Any:
    """Import mujoco with an offscreen renderer."""
    backend = use_offscreen_rendering()
    try:
        import mujoco
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: run `pip install 'rocket-hf[sim]'`") from error
    except (ImportError, RuntimeError, AttributeError) as error:  # raised by mujoco for each kind of missing OpenGL
        raise UserError(
            f"MuJoCo cannot render with MUJOCO_GL={backend!r} ({error}): unset it, or {INSTALL_OPENGL}"
        ) from error
    return mujoco


def use_offscreen_rendering() -> str:
    """Set MUJOCO_GL unless the user has set it, and return it. Call this before mujoco is imported."""
    if not os.environ.get("MUJOCO_GL"):
        chosen = offscreen_backend()
        if chosen and "mujoco" in sys.modules:
            raise UserError(
                f"mujoco was imported before its renderer was chosen: set MUJOCO_GL={chosen} and start again"
            )
        if chosen:
            os.environ["MUJOCO_GL"] = chosen
    return os.environ.get("MUJOCO_GL", "")


def offscreen_backend() -> str:
    """Return "egl" if EGL finds a device (also Mesa's software renderer), otherwise "osmesa".

    Return an empty string where MuJoCo's own default works: on other systems than Linux, or with a display only.
    """
    if sys.platform != "linux":
        return ""
    if is_egl_available():
        return "egl"
    if load_library("libOSMesa.so.8") or load_library("libOSMesa.so"):
        return "osmesa"
    if os.environ.get("DISPLAY"):
        return ""
    raise UserError(f"the simulator found no OpenGL for rendering without a window: {INSTALL_OPENGL}")


def is_egl_available() -> bool:
    """Return whether EGL can open a display on any device, as MuJoCo will: the library may lack its driver."""
    egl = load_library("libEGL.so.1")
    if egl is None or not (load_library("libGL.so.1") or load_library("libOpenGL.so.0")):
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    addresses = [egl.eglGetProcAddress(name) for name in (b"eglQueryDevicesEXT", b"eglGetPlatformDisplayEXT")]
    if not all(addresses):
        return False
    query_devices = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(addresses[0])
    get_display = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(addresses[1])
    devices, count = (ctypes.c_void_p * MAX_DEVICES)(), ctypes.c_int()
    query_devices(MAX_DEVICES, devices, ctypes.byref(count))
    egl.eglInitialize.argtypes = [ctypes.c_void_p] * 3
    return any(
        egl.eglInitialize(get_display(EGL_PLATFORM_DEVICE, device, None), None, None)
        for device in devices[: count.value]
    )


def load_library(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
