"""A scripted expert of LIBERO's spatial suite, which reads poses from the simulator: the bowl onto the plate.

It takes the bowl by its rim, on the side that is away from the plate, lifts it, carries it over the plate and lets it
down. The hand stays upright, and its fingers close along the table's y.
"""

from typing import Any

import numpy as np

SUITES = ("libero_spatial",)  # whose goal is always that a bowl stands on a plate
OPEN, CLOSED = -1.0, 1.0
GAIN = 12.0  # of the action, for each metre that is left to go
NEAR = 0.012  # metres
GRASP_STEPS = 12
RIM = np.array([0.0, 0.047, 0.042])  # metres from the bowl's origin to where the fingers take it
CLEARANCE = 0.10  # metres above that, on the way there
LIFT = 0.15  # metres that the bowl is carried above what it stood on, and above the plate
DROP = 0.012  # metres above the plate, where the bowl is let go


class PickAndPlace:
    """One action at a time; which phase it is in, and where it began, is all that it remembers."""

    def __init__(self, benchmark: str, simulation: Any) -> None:
        if benchmark not in SUITES:
            raise ValueError(f"{benchmark} has no scripted expert: name tasks of {', '.join(SUITES)}, which has one")
        self.simulation = simulation
        self.bowl, self.plate = simulation.obj_of_interest
        self.phases = [self.above, self.down, self.grasp, self.lift, self.carry, self.lower, self.release]
        self.steps = 0  # of the phase
        self.height = max(self.position(self.bowl)[2], self.position(self.plate)[2]) + LIFT
        self.side = -1.0 if self.position(self.plate)[1] > self.position(self.bowl)[1] else 1.0

    def action(self) -> np.ndarray:
        """(7,) float32. A phase says where the hand goes, whether the fingers close, and whether it is over."""
        target, fingers, over = self.phases[0]()
        self.steps += 1
        if over and len(self.phases) > 1:
            self.phases, self.steps = self.phases[1:], 0
        move = np.clip(GAIN * (target - self.hand()), -1, 1)
        return np.array([*move, 0, 0, 0, fingers], np.float32)

    def above(self) -> tuple[np.ndarray, float, bool]:
        target = self.rim() + [0, 0, CLEARANCE]
        return target, OPEN, self.near(target)

    def down(self) -> tuple[np.ndarray, float, bool]:
        return self.rim(), OPEN, self.near(self.rim())

    def grasp(self) -> tuple[np.ndarray, float, bool]:
        return self.hand(), CLOSED, self.steps >= GRASP_STEPS

    def lift(self) -> tuple[np.ndarray, float, bool]:
        target = self.held_at(np.array([*self.position(self.bowl)[:2], self.height]))
        return target, CLOSED, abs(target[2] - self.hand()[2]) < NEAR

    def carry(self) -> tuple[np.ndarray, float, bool]:
        target = self.held_at(np.array([*self.position(self.plate)[:2], self.height]))
        return target, CLOSED, self.near(target)

    def lower(self) -> tuple[np.ndarray, float, bool]:
        target = self.held_at(self.position(self.plate) + [0, 0, DROP])
        return target, CLOSED, self.near(target)

    def release(self) -> tuple[np.ndarray, float, bool]:
        return self.hand(), OPEN, False

    def rim(self) -> np.ndarray:
        return self.position(self.bowl) + RIM * [1, self.side, 1]

    def held_at(self, place: np.ndarray) -> np.ndarray:
        """Where the hand is when the bowl that it holds is at a place."""
        return place + self.hand() - self.position(self.bowl)

    def near(self, target: np.ndarray) -> bool:
        return float(np.linalg.norm(target - self.hand())) < NEAR

    def hand(self) -> np.ndarray:
        return self.simulation.sim.data.site_xpos[self.simulation.robots[0].eef_site_id]

    def position(self, name: str) -> np.ndarray:
        return self.simulation.sim.data.body_xpos[self.simulation.obj_body_id[name]]
