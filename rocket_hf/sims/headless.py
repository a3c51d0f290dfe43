"""Which OpenGL draws the simulator's pictures: no window is ever opened, so a server without a display will do.

MuJoCo reads MUJOCO_GL once, when it is imported, and without it asks for a window. What the user has set stays.
"""

import ctypes
import os
import sys

from rocket_hf.errors import UserError

NO_OPENGL = (
    "the simulator has no OpenGL to draw without a window: run `apt-get install libegl1 libgl1-mesa-dri libgl1` "
    "(Debian and Ubuntu), or `apt-get install libosmesa6`"
)
EGL_PLATFORM_DEVICE = 0x313F  # EGL_PLATFORM_DEVICE_EXT, as Khronos numbers it
MOST_DEVICES = 16


def use_offscreen_rendering() -> str:
    """Sets MUJOCO_GL unless the user has, and returns it. Call it before mujoco is imported."""
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
    """EGL where it finds a device (Mesa's software counts), else OSMesa; empty where MuJoCo's own choice is right."""
    if sys.platform != "linux":
        return ""
    if egl_works():
        return "egl"
    if loads("libOSMesa.so.8") or loads("libOSMesa.so"):
        return "osmesa"
    if os.environ.get("DISPLAY"):
        return ""
    raise UserError(NO_OPENGL)


def egl_works() -> bool:
    """Whether a display opens on any device, which is what MuJoCo will try: the library alone may lack its driver."""
    egl = loads("libEGL.so.1")
    if egl is None or not (loads("libGL.so.1") or loads("libOpenGL.so.0")):
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    addresses = [egl.eglGetProcAddress(name) for name in (b"eglQueryDevicesEXT", b"eglGetPlatformDisplayEXT")]
    if not all(addresses):
        return False
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(addresses[0])
    display_of = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(addresses[1])
    devices, count = (ctypes.c_void_p * MOST_DEVICES)(), ctypes.c_int()
    query(MOST_DEVICES, devices, ctypes.byref(count))
    egl.eglInitialize.argtypes = [ctypes.c_void_p] * 3
    return any(
        egl.eglInitialize(display_of(EGL_PLATFORM_DEVICE, device, None), None, None)
        for device in devices[: count.value]
    )


def loads(library: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(library)
    except OSError:
        return None
