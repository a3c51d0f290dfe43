"""A scripted expert of LIBERO's spatial suite, which reads poses from the simulator: the bowl onto the plate.

It takes the bowl by its rim, where there is room for the outer finger, lifts it, carries it over the plate and lets it
down. The hand stays upright and turns about the vertical alone.
"""

from typing import Any

import numpy as np

from rocket_hf.errors import UserError

SUITES = ("libero_spatial",)  # whose goal is always that a bowl stands on a plate
OPEN, CLOSED = -1.0, 1.0
GAIN, TURNING_GAIN = 12.0, 2.0  # of the action, for each metre and radian that is left to go
NEAR, ABOUT = 0.012, 0.025  # meters from where the hand is to be, when it counts as there
GRASP_STEPS = 12
PATIENCE = 35  # steps, after which a phase is over wherever the hand is
RIM_RADIUS, RIM_HEIGHT = 0.047, np.array([0.0, 0.0, 0.032])  # meters from the bowl's origin to where it is taken
FINGER = [(radius, across) for radius in (0.07, 0.085, 0.1) for across in (-0.015, 0.015)]  # the outer one's footprint
HAND = [(radius, across) for radius in (-0.07, 0.16) for across in (-0.03, 0.03)]  # the ends of what is above them
HAND_HEIGHT = 0.1  # meters above the bowl's foot, when the fingers are down
RAY_HEIGHT = np.array([0.0, 0.0, 0.3])  # meters: above all furniture
CLEARANCE = np.array([0.0, 0.0, 0.10])  # meters above the rim, on the way there
LIFT = 0.12  # meters that the bowl is carried above what it stood on, and above the plate
DROP = np.array([0.0, 0.0, 0.012])  # meters above the plate, where the bowl is let go
SIDES = np.linspace(-np.pi, np.pi, 24, endpoint=False)
COST_OF_TURNING = 0.01  # a radian is as bad as so many meters of what stands in the finger's way
SHAPES = np.array([1, 0, 0, 0, 0, 0], np.uint8)  # the group of geoms that things touch with


def require_expert(benchmark: str) -> None:
    if benchmark not in SUITES:
        raise UserError(f"{benchmark} has no scripted expert: name tasks of {', '.join(SUITES)}, which has one")


class PickAndPlace:
    """One action at a time; which phase it is in, and what it chose at the start, is all that it remembers."""

    def __init__(self, benchmark: str, simulation: Any) -> None:
        require_expert(benchmark)
        self.simulation = simulation
        self.bowl, self.plate = simulation.obj_of_interest
        self.phases = [self.above, self.down, self.grasp, self.lift, self.carry, self.lower, self.release]
        self.steps = 0  # of the phase
        self.height = max(self.position(self.bowl)[2], self.position(self.plate)[2]) + LIFT
        self.side = min(SIDES, key=self.crowdedness)  # radians about the bowl

    def action(self) -> np.ndarray:
        """(7,) float32. A phase says where the hand goes, whether the fingers close, and whether it is over."""
        target, fingers, over = self.phases[0]()
        self.steps += 1
        if (over or self.steps >= PATIENCE) and len(self.phases) > 1:
            self.phases, self.steps = self.phases[1:], 0
        move = np.clip(GAIN * (target - self.hand()), -1, 1)
        turn = np.clip(TURNING_GAIN * self.turn_to(self.side), -1, 1)
        return np.array([*move, 0, 0, turn, fingers], np.float32)

    def above(self) -> tuple[np.ndarray, float, bool]:
        target = self.rim() + CLEARANCE
        return target, OPEN, self.near(target, ABOUT) and abs(self.turn_to(self.side)) < 0.1

    def down(self) -> tuple[np.ndarray, float, bool]:
        return self.rim(), OPEN, self.near(self.rim())

    def grasp(self) -> tuple[np.ndarray, float, bool]:
        return self.hand(), CLOSED, self.steps >= GRASP_STEPS

    def lift(self) -> tuple[np.ndarray, float, bool]:
        target = self.held_at(np.array([*self.position(self.bowl)[:2], self.height]))
        return target, CLOSED, abs(target[2] - self.hand()[2]) < ABOUT

    def carry(self) -> tuple[np.ndarray, float, bool]:
        target = self.held_at(np.array([*self.position(self.plate)[:2], self.height]))
        return target, CLOSED, self.near(target, ABOUT)

    def lower(self) -> tuple[np.ndarray, float, bool]:
        target = self.held_at(self.position(self.plate) + DROP)
        return target, CLOSED, self.near(target)

    def release(self) -> tuple[np.ndarray, float, bool]:
        return self.hand(), OPEN, False

    def rim(self) -> np.ndarray:
        return self.beside_bowl(self.side, RIM_RADIUS, 0) + RIM_HEIGHT

    def beside_bowl(self, side: float, radius: float, across: float) -> np.ndarray:
        outwards, sideways = np.array([np.cos(side), np.sin(side), 0]), np.array([-np.sin(side), np.cos(side), 0])
        return self.position(self.bowl) + radius * outwards + across * sideways

    def crowdedness(self, side: float) -> float:
        """How high things stand in the way of the outer finger and of the hand, and how far the hand turns."""
        finger = max(self.height_at(self.beside_bowl(side, *place)) for place in FINGER)
        hand = max(self.height_at(self.beside_bowl(side, *place)) for place in HAND) - HAND_HEIGHT
        return max(0.0, finger) + max(0.0, hand) + COST_OF_TURNING * abs(self.turn_to(side))

    def height_at(self, place: np.ndarray) -> float:
        """Of the first thing that a ray from above meets, over that place."""
        import mujoco

        above, met = place + RAY_HEIGHT, np.zeros(1, np.int32)
        sim = self.simulation.sim
        distance = mujoco.mj_ray(
            sim.model._model, sim.data._data, above, np.array([0.0, 0.0, -1.0]), SHAPES, 1, -1, met
        )
        return above[2] - distance - place[2]

    def turn_to(self, side: float) -> float:
        """Radians from the line on which the fingers close to that side's, either way round."""
        across = self.simulation.sim.data.site_xmat[self.simulation.robots[0].eef_site_id].reshape(3, 3)[:, 0]
        return (side - np.arctan2(across[1], across[0]) + np.pi / 2) % np.pi - np.pi / 2

    def held_at(self, place: np.ndarray) -> np.ndarray:
        """Where the hand is when the bowl that it holds is at a place."""
        return place + self.hand() - self.position(self.bowl)

    def near(self, target: np.ndarray, distance: float = NEAR) -> bool:
        return float(np.linalg.norm(target - self.hand())) < distance

    def hand(self) -> np.ndarray:
        return self.simulation.sim.data.site_xpos[self.simulation.robots[0].eef_site_id]

    def position(self, name: str) -> np.ndarray:
        return self.simulation.sim.data.body_xpos[self.simulation.obj_body_id[name]]
