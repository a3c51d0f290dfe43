"""The environment that an episode of an evaluation runs in: the simulator's, under its benchmark's protocol."""

from ..sims.contract import Environment
from ..sims.suites import make_environment
from .libero_protocol import LiberoProtocol, libero_suite


def evaluation_environment(suite: str, task: str, image_size: int = 128, max_steps: int | None = None) -> Environment:
    """`max_steps` None: as the benchmark has it, or else the simulator."""
    environment = make_environment(suite, task, image_size, max_steps)
    benchmark = libero_suite(suite, task)
    return LiberoProtocol(environment, benchmark, max_steps) if benchmark else environment
