"""Checks of the inputs of a ROCKET-2 policy. Wrong inputs raise `ValueError` with the expected shape or key."""

from torch import Tensor

from .configuration_rocket2 import Rocket2Config
from .rocket2_interface import Goal, Rocket2Batch
from .strict_config import suggest_name

Shape = tuple[int | None, ...]  # None for any size
REQUIRED_INPUTS = {"images", "goal_images", "goal_masks", "goal_interactions", "goal_index"}


def check_rocket2_batch(config: Rocket2Config, batch: Rocket2Batch, training: bool) -> None:
    """Check the keys and shapes of a batch; in training mode it needs the targets of the auxiliary heads."""
    required = set(REQUIRED_INPUTS)
    if config.reads_previous_action:
        required.add("previous_actions")
    if training and config.auxiliary_heads:
        required |= {"visibility", *config.auxiliary_heads}
    for key in batch:
        if key not in Rocket2Batch.__annotations__:
            raise ValueError(f"a batch has no key {key!r}: {suggest_name(key, Rocket2Batch.__annotations__)}")
    if missing := sorted(required - batch.keys()):
        present = ", ".join(map(repr, sorted(batch)))
        raise ValueError(f"the batch lacks {', '.join(map(repr, missing))}; it has {present}")
    shapes = batch_shapes(config, batch)
    for key, value in batch.items():
        check_shape(f"batch[{key!r}]", value, shapes[key])  # type: ignore[arg-type]


def batch_shapes(config: Rocket2Config, batch: Rocket2Batch) -> dict[str, Shape]:
    """Return the expected shape of each key, given the batch size, steps and goals of the images in the batch."""
    chunk = tuple(batch["images"].shape[:2])
    goals = (chunk[0], batch["goal_images"].shape[1])
    shapes: dict[str, Shape] = {
        "images": (*chunk, 3, *config.image_size),
        "goal_images": (*goals, 3, *config.image_size),
        "goal_masks": (*goals, *config.image_size),
        "goal_interactions": goals,
        "previous_actions": (*chunk, len(config.factors)),
        "actions": (*chunk, len(config.factors)),
        "point": (*chunk, 2),
        "box": (*chunk, 4),
    }
    return shapes | dict.fromkeys(("goal_index", "is_pad", "visibility", "previous_hidden"), chunk)


def check_goal(config: Rocket2Config, goal: Goal, count: int) -> None:
    """Check a goal for `count` environments."""
    check_shape("goal.images", goal.images, (count, 3, *config.image_size))
    check_shape("goal.masks", goal.masks, (count, *config.image_size))
    check_shape("goal.interactions", goal.interactions, (count,))
    if not ((goal.interactions >= -1) & (goal.interactions < config.interactions)).all():
        raise ValueError(
            f"goal.interactions must lie in -1..{config.interactions - 1}, got {goal.interactions.tolist()}"
        )


def check_shape(name: str, tensor: Tensor, shape: Shape) -> None:
    actual = tuple(tensor.shape)
    if len(actual) != len(shape) or any(size not in (None, found) for size, found in zip(shape, actual, strict=True)):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must be ({expected}), got {actual}")
