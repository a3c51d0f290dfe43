"""LIBERO's suites: their tasks by number, as lerobot numbers them, and how its benchmark is run.

The limits are longer than the longest demonstration of each suite. Public evaluations run fifty starts of each of ten
tasks.
"""

TASKS = {"libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90}
STEP_LIMITS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
WAITING_STEPS = 10  # in which objects fall onto the table, before anybody looks; they count against no limit
WAITING_ACTION = (0, 0, 0, 0, 0, 0, -1)  # the arm still, the gripper open
GROUPS = {suite: [f"{suite}/{number}" for number in range(count)] for suite, count in TASKS.items()}
