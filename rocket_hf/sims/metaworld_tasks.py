"""The fifty tasks of MetaWorld: the benchmark's difficulty groups, the instruction of each task, and kinds of tasks."""

EASY = {
    "button-press-v3": "press the button in",
    "button-press-topdown-v3": "press the button down from above",
    "button-press-topdown-wall-v3": "reach over the wall and press the button down from above",
    "button-press-wall-v3": "reach over the wall and press the button in",
    "coffee-button-v3": "press the button of the coffee machine",
    "dial-turn-v3": "turn the dial",
    "door-close-v3": "close the door",
    "door-lock-v3": "lock the door",
    "door-open-v3": "open the door",
    "door-unlock-v3": "unlock the door",
    "drawer-close-v3": "close the drawer",
    "drawer-open-v3": "open the drawer",
    "faucet-close-v3": "close the faucet",
    "faucet-open-v3": "open the faucet",
    "handle-press-v3": "press the handle down from the front",
    "handle-press-side-v3": "press the handle down from the side",
    "handle-pull-v3": "pull the handle up from the front",
    "handle-pull-side-v3": "pull the handle up from the side",
    "lever-pull-v3": "pull the lever up",
    "plate-slide-v3": "slide the plate forward into the goal",
    "plate-slide-back-v3": "slide the plate back out of the goal",
    "plate-slide-back-side-v3": "slide the plate sideways out of the goal",
    "plate-slide-side-v3": "slide the plate sideways into the goal",
    "reach-v3": "move the hand to the target",
    "reach-wall-v3": "move the hand over the wall to the target",
    "window-close-v3": "slide the window shut",
    "window-open-v3": "slide the window open",
    "peg-unplug-side-v3": "pull the peg sideways out of its hole",
}
MEDIUM = {
    "basketball-v3": "throw the basketball through the hoop",
    "bin-picking-v3": "move the block from one bin to the other",
    "box-close-v3": "put the lid on the box",
    "coffee-pull-v3": "pull the mug away from the coffee machine",
    "coffee-push-v3": "push the mug under the coffee machine",
    "hammer-v3": "drive the nail in with the hammer",
    "peg-insert-side-v3": "put the peg sideways into its hole",
    "push-wall-v3": "push the puck around the wall to the target",
    "soccer-v3": "push the ball into the soccer goal",
    "sweep-v3": "sweep the block off the table",
    "sweep-into-v3": "sweep the block into the hole",
}
HARD = {
    "assembly-v3": "put the ring over the peg",
    "hand-insert-v3": "put the block and the hand into the hole",
    "pick-out-of-hole-v3": "lift the puck out of the hole",
    "pick-place-v3": "carry the puck to the target",
    "push-v3": "push the puck to the target",
    "push-back-v3": "pull the puck back to the target",
}
VERY_HARD = {
    "shelf-place-v3": "put the block on the shelf",
    "disassemble-v3": "lift the ring off the peg",
    "stick-pull-v3": "hook the thermos with the stick and pull it",
    "stick-push-v3": "push the thermos with the stick",
    "pick-place-wall-v3": "carry the puck over the wall to the target",
}
TASK_GROUPS = {"easy": EASY, "medium": MEDIUM, "hard": HARD, "very_hard": VERY_HARD}
INSTRUCTIONS = {task: instruction for tasks in TASK_GROUPS.values() for task, instruction in tasks.items()}

# Tasks whose objects are fixed to the world, and which the experts solve if these are raised by 0 to 12 cm.
RAISABLE_TASKS = frozenset({
    "button-press-v3", "button-press-topdown-v3", "button-press-topdown-wall-v3", "button-press-wall-v3",
    "dial-turn-v3", "door-close-v3", "door-lock-v3", "drawer-close-v3", "drawer-open-v3", "faucet-close-v3",
    "faucet-open-v3", "handle-pull-v3", "handle-pull-side-v3", "lever-pull-v3", "window-close-v3", "window-open-v3",
})  # fmt: skip
REACHING_TASKS = frozenset({"reach-v3", "reach-wall-v3"})  # the hand goes to a goal in the air, and moves no object
