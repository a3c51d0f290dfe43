"""Environment without a simulator: a point must reach a goal in the plane; both are pixels of its images."""

import numpy as np

from rocket_hf.sims.environment import DepthView, Environment, Observation

SIZE = 28


class PointEnvironment(Environment):
    suite, instruction, fps, max_steps = "points", "go to the goal", 10, 12
    cameras: tuple[str, ...] = ("front", "wrist")
    state_names: tuple[str, ...] = ("x", "y", "a", "b", "c", "d")
    action_names: tuple[str, ...] = ("x", "y", "a", "b", "c")

    def __init__(self, task: str):
        self.task = task
        self.observations, self.is_closed = 0, False

    def reset(self, seed: int) -> None:
        generator = np.random.default_rng([seed, len(self.task)])
        self.position, self.goal = generator.uniform(-1, 1, 2), generator.uniform(-1, 1, 2)

    def step(self, action: np.ndarray) -> bool:
        self.position = np.clip(self.position + 0.2 * np.clip(action[:2], -1, 1), -1, 1)
        return bool(np.abs(self.position - self.goal).max() < 0.4)

    def observe(self) -> Observation:
        self.observations += 1
        image = np.zeros((SIZE, SIZE, 3), np.uint8)
        for channel, point in enumerate((self.position, self.goal)):
            row, column = ((point + 1) / 2 * (SIZE - 1)).astype(int)
            image[row, column, channel] = 255
        return Observation(dict.fromkeys(self.cameras, image), np.resize(self.position, 6).astype(np.float32))

    def depth_views(self) -> dict[str, DepthView]:
        return {}

    def expert_action(self) -> np.ndarray:
        return np.clip((self.goal - self.position) / 0.2, -1, 1)

    def close(self) -> None:
        self.is_closed = True
