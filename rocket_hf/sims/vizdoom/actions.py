"""What a policy's choices mean to ViZDoom. Another engine is another table of this form, and a world of its own.

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
REST = (0,) * len(FACTORS)
BUTTONS = ("MOVE_FORWARD", "MOVE_BACKWARD", "MOVE_LEFT", "MOVE_RIGHT", "TURN_LEFT_RIGHT_DELTA")


def buttons(choices: Sequence[int], tics: int) -> list[float]:
    """The values of BUTTONS in each of the tics that a step lasts: the turn is shared by them."""
    walk, strafe, turn = choices
    return [float(walk == 1), float(walk == 2), float(strafe == 1), float(strafe == 2), TURNS[turn] / tics]


def nearest_turn(left: float) -> int:
    """The choice that comes nearest to so many degrees to the left."""
    return min(range(len(TURNS)), key=lambda choice: abs(TURNS[choice] + left))
