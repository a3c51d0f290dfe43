"""A point on a line that must come to the goal, seen in a picture: an environment without a simulator."""

import numpy as np

from rocket_hf.sims.environment import DepthView, Environment, Observation

SIZE = 28


class PointWorld(Environment):
    suite, instruction, fps, max_steps = "points", "go to the goal", 10, 12
    cameras: tuple[str, ...] = ("front", "wrist")
    state_names: tuple[str, ...] = ("x", "y", "a", "b", "c", "d")
    action_names: tuple[str, ...] = ("x", "y", "a", "b", "c")

    def __init__(self, task: str):
        self.task = task
        self.looks, self.closed = 0, False

    def reset(self, seed: int) -> None:
        draw = np.random.default_rng([seed, len(self.task)])
        self.place, self.goal = draw.uniform(-1, 1, 2), draw.uniform(-1, 1, 2)

    def step(self, action: np.ndarray) -> bool:
        self.place = np.clip(self.place + 0.2 * np.clip(action[:2], -1, 1), -1, 1)
        return bool(np.abs(self.place - self.goal).max() < 0.4)

    def observe(self) -> Observation:
        self.looks += 1
        picture = np.zeros((SIZE, SIZE, 3), np.uint8)
        for channel, point in enumerate((self.place, self.goal)):
            row, column = ((point + 1) / 2 * (SIZE - 1)).astype(int)
            picture[row, column, channel] = 255
        return Observation(dict.fromkeys(self.cameras, picture), np.resize(self.place, 6).astype(np.float32))

    def depth_views(self) -> dict[str, DepthView]:
        return {}

    def expert_action(self) -> np.ndarray:
        return np.clip((self.goal - self.place) / 0.2, -1, 1)

    def close(self) -> None:
        self.closed = True
