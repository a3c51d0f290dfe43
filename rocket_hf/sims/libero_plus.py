"""LIBERO-Plus as an environment: LIBERO's worlds with another camera, another posture of the arm, other words, noise.

All but what is varied is `LiberoEnvironment`'s; what varies it is the benchmark's own code. Its code tells a policy the
end of a task's name as if it were words of the instruction ("... view 0 0 100 0 0 initstate 3"); here it does not.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rocket_hf.errors import UserError

from .environment import Observation
from .libero import LiberoEnvironment, Scene, make_world
from .libero_plus_files import benchmark_names, find_models, import_libero_plus, plus_folder, require_archive
from .libero_plus_tasks import GROUPS, TASKS, variation
from .names import require_known

NOISE_SIZE = 256  # of the pictures that the benchmark's noise is made for; its fog fits no other
KINDS_OF_NOISE = ("motion_blur", "gaussian_blur", "zoom_blur", "fog", "glass_blur")
SEVERITIES = 10


class LiberoPlusEnvironment(LiberoEnvironment):
    suite = "libero-plus"

    def _scene(self, task: str) -> Scene:
        benchmark, axis, number = split_name(task)
        package = plus_folder()
        require_archive(axis, find_models(package))
        names = (name for name in benchmark_names(package)[benchmark] if variation(name).axis == axis)
        name = list(names)[number]
        self._varied, self._wrapper = variation(name), import_libero_plus(package)
        if self._varied.noise and self.image_size != NOISE_SIZE:
            raise UserError(f"LIBERO-Plus makes its noise for pictures of {NOISE_SIZE} pixels: add --image-size 256")
        world = make_world(self._wrapper.ControlEnv, package / "bddl_files" / benchmark / f"{name}.bddl")
        world.noise = 0  # it has read camera, posture and noise off the name, and would blur what it does not draw
        starts = self._starts_file(package / "init_files", benchmark, name)
        return Scene(world, world.language_instruction if axis == "language" else self._varied.sentence, starts)

    def _starts_file(self, folder: Path, benchmark: str, name: str) -> Path:
        moved = self._varied.axis.startswith("layout")
        place = folder / "libero_newobj" / benchmark / name if moved else folder / benchmark / self._varied.base
        return place.with_name(f"{place.name}.pruned_init")

    def observe(self) -> Observation:
        seen = super().observe()
        if not self._varied.noise:
            return seen
        picture = noisy(self._wrapper, self._varied.noise, seen.images["image"])
        return Observation(seen.images | {"image": picture}, seen.state)


def noisy(wrapper: Any, noise: int, picture: np.ndarray) -> np.ndarray:
    """(256, 256, 3) uint8, blurred as robosuite has it: turned by half a turn. The same picture, the same noise."""
    from PIL import Image

    kind, severity = divmod(noise - 1, SEVERITIES)
    turned = Image.fromarray(np.ascontiguousarray(picture[::-1, ::-1]))
    with drawn_by(zlib.crc32(picture.tobytes())):
        blurred = getattr(wrapper, KINDS_OF_NOISE[kind])(turned, severity=severity + 1)
    return np.ascontiguousarray(blurred.astype(np.uint8)[::-1, ::-1])


@contextmanager
def drawn_by(seed: int) -> Iterator[None]:
    """The benchmark's noise draws from numpy's one generator, which other worlds of this process use, too."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


def split_name(task: str) -> tuple[str, str, int]:
    """`libero_spatial/camera/3` is the fourth of the tasks of that suite that another camera shows."""
    benchmark, _, rest = task.partition("/")
    group, _, number = task.rpartition("/")
    require_known("LIBERO-Plus", "suite", benchmark, TASKS)
    require_known(benchmark, "axis", group, [name for name in GROUPS if name.startswith(benchmark)])
    require_known(group, "task", task, GROUPS[group])
    return benchmark, rest.partition("/")[0], int(number)
