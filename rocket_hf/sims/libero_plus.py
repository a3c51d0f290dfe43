"""LIBERO-Plus as an environment: variations of LIBERO's camera, robot pose, instruction, objects, light and noise.

The benchmark's own code creates the variation; everything else is inherited from `LiberoEnvironment`. The benchmark's
instructions end with the parameters in the task's name ("... view 0 0 100 0 0 initstate 3"), which are removed here.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rocket_hf.errors import UserError

from .environment import Observation
from .libero import LiberoEnvironment, LiberoTask, make_control_env
from .libero_plus_files import benchmark_names, find_models, import_libero_plus, plus_folder, require_archive
from .libero_plus_tasks import TASK_GROUPS, TASKS, parse_variation
from .names import require_known

NOISE_IMAGE_SIZE = 256  # the benchmark's noise supports only this size (because of its fog)
NOISE_KINDS = ("motion_blur", "gaussian_blur", "zoom_blur", "fog", "glass_blur")
SEVERITIES = 10


class LiberoPlusEnvironment(LiberoEnvironment):
    """One variation of a task of LIBERO."""

    suite = "libero-plus"

    def _load_task(self, task: str) -> LiberoTask:
        benchmark, axis, number = parse_libero_plus_task(task)
        package = plus_folder()
        require_archive(axis, find_models(package))
        names = (name for name in benchmark_names(package)[benchmark] if parse_variation(name).axis == axis)
        name = list(names)[number]
        self._variation, self._wrapper = parse_variation(name), import_libero_plus(package)
        if self._variation.noise and self.image_size != NOISE_IMAGE_SIZE:
            raise UserError(f"the noise of LIBERO-Plus needs images of {NOISE_IMAGE_SIZE} pixels: add --image-size 256")
        control_env = make_control_env(self._wrapper.ControlEnv, package / "bddl_files" / benchmark / f"{name}.bddl")
        # The benchmark applies the noise of the task's name to its own images, which are not rendered here.
        control_env.noise = 0
        instruction = control_env.language_instruction if axis == "language" else self._variation.instruction
        initial_states = self._initial_states_file(package / "init_files", benchmark, name)
        return LiberoTask(control_env, instruction, initial_states)

    def _initial_states_file(self, folder: Path, benchmark: str, name: str) -> Path:
        has_own_states = self._variation.axis.startswith("layout")
        if has_own_states:
            return folder / "libero_newobj" / benchmark / f"{name}.pruned_init"
        return folder / benchmark / f"{self._variation.base}.pruned_init"

    def observe(self) -> Observation:
        observation = super().observe()
        if not self._variation.noise:
            return observation
        noisy = add_noise(self._wrapper, self._variation.noise, observation.images["image"])
        return Observation(observation.images | {"image": noisy}, observation.state)


def add_noise(wrapper: Any, noise: int, image: np.ndarray) -> np.ndarray:
    """Apply the benchmark's noise to an image (256, 256, 3) uint8. The same image gets the same noise.

    The noise is applied in robosuite's orientation, rotated by 180 degrees.
    """
    from PIL import Image

    kind, severity = divmod(noise - 1, SEVERITIES)
    rotated = Image.fromarray(np.ascontiguousarray(image[::-1, ::-1]))
    with numpy_seed(zlib.crc32(image.tobytes())):
        noisy = getattr(wrapper, NOISE_KINDS[kind])(rotated, severity=severity + 1)
    return np.ascontiguousarray(noisy.astype(np.uint8)[::-1, ::-1])


@contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which the benchmark's noise uses, and restore its state afterwards."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def parse_libero_plus_task(task: str) -> tuple[str, str, int]:
    """Return the suite, axis and 0-based number of a task such as `libero_spatial/camera/3`."""
    benchmark, _, rest = task.partition("/")
    group, _, number = task.rpartition("/")
    require_known("LIBERO-Plus", "suite", benchmark, TASKS)
    require_known(benchmark, "axis", group, [name for name in TASK_GROUPS if name.startswith(benchmark)])
    require_known(group, "task", task, TASK_GROUPS[group])
    return benchmark, rest.partition("/")[0], int(number)
