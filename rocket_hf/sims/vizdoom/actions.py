"""Action space of ViZDoom: the meaning of each choice of a policy's action factors.

Another engine needs another table of this form.

    factor  choice    engine
    walk    0         -
            1         MOVE_FORWARD
            2         MOVE_BACKWARD
    strafe  0         -
            1         MOVE_LEFT
            2         MOVE_RIGHT
    turn    0         -
            1 to 8    TURN_LEFT_RIGHT_DELTA of -30, -12, -5, -2, 2, 5, 12, 30 degrees; positive is to the right

The first choice of each factor does nothing.
"""

from collections.abc import Sequence

TURNS = (0.0, -30.0, -12.0, -5.0, -2.0, 2.0, 5.0, 12.0, 30.0)
FACTORS = {"walk": 3, "strafe": 3, "turn": len(TURNS)}
IDLE = (0,) * len(FACTORS)
BUTTONS = ("MOVE_FORWARD", "MOVE_BACKWARD", "MOVE_LEFT", "MOVE_RIGHT", "TURN_LEFT_RIGHT_DELTA")


def button_values(choices: Sequence[int], tics: int) -> list[float]:
    """Return the values of BUTTONS in each tic of a step. The turn is divided among the tics."""
    walk, strafe, turn = choices
    return [float(walk == 1), float(walk == 2), float(strafe == 1), float(strafe == 2), TURNS[turn] / tics]


def nearest_turn(left: float) -> int:
    """Return the choice whose turn is nearest to `left` degrees to the left."""
    return min(range(len(TURNS)), key=lambda choice: abs(TURNS[choice] + left))
