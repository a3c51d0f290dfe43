"""How LIBERO's benchmark is run, so that success rates compare with published ones.

Ten steps of waiting let the objects fall onto the table before the policy looks; they count against no limit. Pictures
are those of the simulator, upright. The limits are longer than the longest demonstration of each suite; public
evaluations run 50 starts of each of ten tasks, executing 8 actions of a chunk.
"""

import numpy as np

from ..sims.contract import DepthView, Environment, Observation

STEP_LIMITS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
WAITING_STEPS = 10
WAITING_ACTION = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)  # the arm still, the gripper open


def libero_suite(suite: str, task: str) -> str | None:
    """Which of the benchmark's suites a task is of, as its suite or the start of its name say; None elsewhere."""
    for name in sorted(STEP_LIMITS, key=len, reverse=True):
        if name in (suite, task.partition("/")[0]):
            return name
    return None


class LiberoProtocol(Environment):
    def __init__(self, environment: Environment, benchmark: str, max_steps: int | None = None):
        self.inner = environment
        self.suite, self.task, self.instruction = environment.suite, environment.task, environment.instruction
        self.cameras, self.fps = environment.cameras, environment.fps
        self.state_names, self.action_names = environment.state_names, environment.action_names
        self.max_steps = max_steps or STEP_LIMITS[benchmark]

    def reset(self, seed: int) -> None:
        self.inner.reset(seed)
        for _ in range(WAITING_STEPS):
            self.inner.step(WAITING_ACTION)

    def step(self, action: np.ndarray) -> bool:
        return self.inner.step(action)

    def observe(self) -> Observation:
        return self.inner.observe()

    def depth_views(self) -> dict[str, DepthView]:
        return self.inner.depth_views()

    def expert_action(self) -> np.ndarray:
        return self.inner.expert_action()

    def close(self) -> None:
        self.inner.close()
