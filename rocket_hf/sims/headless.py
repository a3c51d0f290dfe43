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
MAX_DEVICES = 16  # number of EGL devices (GPUs and software renderers) to try


def import_mujoco() -> Any:
    """Return the module mujoco, imported with an offscreen renderer."""
    backend = use_offscreen_rendering()
    try:
        import mujoco
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: run `pip install 'rocket-hf[sim]'`") from error
    except (ImportError, RuntimeError, AttributeError) as error:  # raised by mujoco for each kind of missing OpenGL
        raise UserError(
            f"MuJoCo cannot render with MUJOCO_GL={backend!r} ({error}): unset MUJOCO_GL, or {INSTALL_OPENGL}"
        ) from error
    return mujoco


def use_offscreen_rendering() -> str:
    """Set MUJOCO_GL unless the user has set it, and return its value. Call this before mujoco is imported."""
    if not os.environ.get("MUJOCO_GL"):
        chosen = choose_offscreen_backend()
        if chosen and "mujoco" in sys.modules:
            raise UserError(
                f"mujoco was imported before its renderer was chosen: restart the program with MUJOCO_GL={chosen}, set "
                "in its environment"
            )
        if chosen:
            os.environ["MUJOCO_GL"] = chosen
    return os.environ.get("MUJOCO_GL", "")


def choose_offscreen_backend() -> str:
    """Return the value of MUJOCO_GL for this machine.

    It is "egl" if EGL finds a device (also Mesa's software renderer), otherwise "osmesa" if that library is installed.
    It is empty, which means MuJoCo's default renderer, on systems other than Linux, and on Linux if the machine has a
    display but neither EGL nor OSMesa.
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
    """Return whether EGL can initialize a device: libEGL may be installed without a driver."""
    egl = load_library("libEGL.so.1")
    # PyOpenGL, which MuJoCo uses to call EGL, also loads one of the two libraries with the OpenGL functions.
    if egl is None or not (load_library("libGL.so.1") or load_library("libOpenGL.so.0")):
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    addresses = [egl.eglGetProcAddress(name) for name in (b"eglQueryDevicesEXT", b"eglGetPlatformDisplayEXT")]
    if not all(addresses):
        return False
    query_devices = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(addresses[0])
    get_display = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(addresses[1])
    devices, device_count = (ctypes.c_void_p * MAX_DEVICES)(), ctypes.c_int()
    query_devices(MAX_DEVICES, devices, ctypes.byref(device_count))
    egl.eglInitialize.argtypes = [ctypes.c_void_p] * 3
    return any(
        egl.eglInitialize(get_display(EGL_PLATFORM_DEVICE, device, None), None, None)
        for device in devices[: device_count.value]
    )


def load_library(name: str) -> ctypes.CDLL | None:
    """Return the shared library, or None if it is not installed."""
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
