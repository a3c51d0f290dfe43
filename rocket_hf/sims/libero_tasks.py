"""Suites of LIBERO: their tasks, numbered as in lerobot, and the protocol of the benchmark.

The step limits exceed the longest demonstration of each suite. Public evaluations run ten tasks with fifty episodes
each.
"""

TASKS = {"libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90}
STEP_LIMITS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
SETTLING_STEPS = 10  # steps in which objects fall onto the table, before the first observation; not part of the limit
SETTLING_ACTION = (0, 0, 0, 0, 0, 0, -1)  # no motion, gripper open
TASK_GROUPS = {suite: [f"{suite}/{number}" for number in range(count)] for suite, count in TASKS.items()}
