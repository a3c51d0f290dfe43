"""Scripted expert of LIBERO's spatial suite: it puts the bowl onto the plate, with poses read from the simulator.

It grasps the bowl at its rim, on a side with free space for the outer finger, lifts it, carries it over the plate and
lowers it. The hand stays upright and rotates only about the vertical axis.
"""

from typing import Any

import numpy as np

from rocket_hf.errors import UserError

SUITES = ("libero_spatial",)  # the goal of all its tasks is a bowl on a plate
OPEN, CLOSED = -1.0, 1.0
GAIN, TURNING_GAIN = 12.0, 2.0  # action per meter and per radian of remaining motion
FINE_TOLERANCE, COARSE_TOLERANCE = 0.012, 0.025  # meters between the hand and its target
GRASP_STEPS = 12
MAX_PHASE_STEPS = 35  # a phase ends after so many steps, wherever the hand is
RIM_RADIUS, RIM_HEIGHT = 0.047, np.array([0.0, 0.0, 0.032])  # meters from the bowl's origin to the grasp
# Footprints beside the bowl, as offsets in meters: outwards from its center, and sideways.
FINGER = [(radius, across) for radius in (0.07, 0.085, 0.1) for across in (-0.015, 0.015)]  # of the outer finger
HAND = [(radius, across) for radius in (-0.07, 0.16) for across in (-0.03, 0.03)]  # of the hand above the fingers
HAND_HEIGHT = 0.1  # meters of the hand above the bowl's foot during the grasp
RAY_HEIGHT = np.array([0.0, 0.0, 0.3])  # meters, higher than all furniture
CLEARANCE = np.array([0.0, 0.0, 0.10])  # meters above the rim during the approach
LIFT = 0.12  # meters of the carried bowl above its support and above the plate
DROP = np.array([0.0, 0.0, 0.012])  # meters above the plate at the release
SIDES = np.linspace(-np.pi, np.pi, 24, endpoint=False)
ROTATION_COST = 0.01  # one radian of rotation costs as much as so many meters of obstacle height
COLLISION_GROUP = np.array([1, 0, 0, 0, 0, 0], np.uint8)  # group of geoms with collisions


def require_libero_expert(benchmark: str) -> None:
    if benchmark not in SUITES:
        raise UserError(f"{benchmark} has no scripted expert: choose tasks of {', '.join(SUITES)} with --tasks")


class PickAndPlace:
    """Expert for one episode. Its only state is the current phase and the choices made at the start."""

    def __init__(self, benchmark: str, simulation: Any) -> None:
        require_libero_expert(benchmark)
        self.simulation = simulation
        self.bowl, self.plate = simulation.obj_of_interest
        self.phases = [self.above, self.down, self.grasp, self.lift, self.carry, self.lower, self.release]
        self.steps = 0  # steps in the current phase
        self.height = max(self.position(self.bowl)[2], self.position(self.plate)[2]) + LIFT
        self.side = min(SIDES, key=self.obstacle_cost)  # direction of the grasp around the bowl, in radians

    def action(self) -> np.ndarray:
        """Return the next action (7,) float32.

        A phase returns the hand's target, the gripper action and whether the phase is done.
        """
        target, fingers, is_done = self.phases[0]()
        self.steps += 1
        if (is_done or self.steps >= MAX_PHASE_STEPS) and len(self.phases) > 1:
            self.phases, self.steps = self.phases[1:], 0
        move = np.clip(GAIN * (target - self.hand()), -1, 1)
        turn = np.clip(TURNING_GAIN * self.angle_to(self.side), -1, 1)
        return np.array([*move, 0, 0, turn, fingers], np.float32)

    def above(self) -> tuple[np.ndarray, float, bool]:
        target = self.rim() + CLEARANCE
        return target, OPEN, self.is_near(target, COARSE_TOLERANCE) and abs(self.angle_to(self.side)) < 0.1

    def down(self) -> tuple[np.ndarray, float, bool]:
        return self.rim(), OPEN, self.is_near(self.rim())

    def grasp(self) -> tuple[np.ndarray, float, bool]:
        return self.hand(), CLOSED, self.steps >= GRASP_STEPS

    def lift(self) -> tuple[np.ndarray, float, bool]:
        target = self.hand_position_for(np.array([*self.position(self.bowl)[:2], self.height]))
        return target, CLOSED, abs(target[2] - self.hand()[2]) < COARSE_TOLERANCE

    def carry(self) -> tuple[np.ndarray, float, bool]:
        target = self.hand_position_for(np.array([*self.position(self.plate)[:2], self.height]))
        return target, CLOSED, self.is_near(target, COARSE_TOLERANCE)

    def lower(self) -> tuple[np.ndarray, float, bool]:
        target = self.hand_position_for(self.position(self.plate) + DROP)
        return target, CLOSED, self.is_near(target)

    def release(self) -> tuple[np.ndarray, float, bool]:
        return self.hand(), OPEN, False

    def rim(self) -> np.ndarray:
        return self.beside_bowl(self.side, RIM_RADIUS, 0) + RIM_HEIGHT

    def beside_bowl(self, side: float, radius: float, across: float) -> np.ndarray:
        outwards, sideways = np.array([np.cos(side), np.sin(side), 0]), np.array([-np.sin(side), np.cos(side), 0])
        return self.position(self.bowl) + radius * outwards + across * sideways

    def obstacle_cost(self, side: float) -> float:
        """Return the height of obstacles for the outer finger and the hand, plus the cost of rotating the hand."""
        finger = max(self.height_at(self.beside_bowl(side, *offset)) for offset in FINGER)
        hand = max(self.height_at(self.beside_bowl(side, *offset)) for offset in HAND) - HAND_HEIGHT
        return max(0.0, finger) + max(0.0, hand) + ROTATION_COST * abs(self.angle_to(side))

    def height_at(self, position: np.ndarray) -> float:
        """Return the height above `position` of the first geom that a ray from above hits."""
        import mujoco

        origin, geom = position + RAY_HEIGHT, np.zeros(1, np.int32)
        sim = self.simulation.sim
        distance = mujoco.mj_ray(
            sim.model._model, sim.data._data, origin, np.array([0.0, 0.0, -1.0]), COLLISION_GROUP, 1, -1, geom
        )
        return origin[2] - distance - position[2]

    def angle_to(self, side: float) -> float:
        """Return the smallest rotation in radians that aligns the closing direction of the fingers with a side."""
        across = self.simulation.sim.data.site_xmat[self.simulation.robots[0].eef_site_id].reshape(3, 3)[:, 0]
        return (side - np.arctan2(across[1], across[0]) + np.pi / 2) % np.pi - np.pi / 2

    def hand_position_for(self, bowl: np.ndarray) -> np.ndarray:
        """Return the position of the hand at which the held bowl is at `bowl`."""
        return bowl + self.hand() - self.position(self.bowl)

    def is_near(self, target: np.ndarray, distance: float = FINE_TOLERANCE) -> bool:
        return float(np.linalg.norm(target - self.hand())) < distance

    def hand(self) -> np.ndarray:
        return self.simulation.sim.data.site_xpos[self.simulation.robots[0].eef_site_id]

    def position(self, name: str) -> np.ndarray:
        return self.simulation.sim.data.body_xpos[self.simulation.obj_body_id[name]]
