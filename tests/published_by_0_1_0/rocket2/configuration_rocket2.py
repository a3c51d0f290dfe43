"""What a ROCKET-2 policy is: the sizes of its encoders and transformers, its actions and the heads that it has."""

from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict

from .rocket2_contract import GoalBatch
from .strict_config import StrictConfig

# What the agent is to do with the object under the mask; -1 where there is nothing to be done.
INTERACTIONS = {"none": -1, "hunt": 0, "mine": 2, "use": 3, "craft": 4, "switch": 5, "approach": 6}

# Heads that exist to train the eyes, and the numbers that each gives: a logit; (y, x); (x0, y0, x1, y1).
AUXILIARY_HEADS = {"visibility": 1, "point": 2, "box": 4}

# Minecraft's: combinations of buttons, the last one opening the inventory, and 11 x 11 movements of the camera.
MINECRAFT_FACTORS = {"buttons": 8641, "camera": 121}
MINECRAFT_REST = (0, 60)


@strict
class Rocket2Config(StrictConfig):
    """The defaults are the smaller of the two public checkpoints, `1x`; `1.5x` has width 1536 and 16 heads.

    An action is one choice from each factor. `action_space` "minecraft" fixes them, "factored" reads `action_factors`,
    choices by name, and `rest_action`, the choices that do nothing (the first ones by default). Their order is that of
    an action's columns: a file holds them as pairs, since transformers sorts the keys of what it writes.
    """

    model_type = "rocket2"

    image_size: list[int] | tuple[int, ...] = (224, 224)  # height, width
    patch_size: int = 16
    rgb_depth: int = 12
    rgb_width: int = 768
    rgb_heads: int = 12
    rgb_mlp_width: int = 3072
    rgb_frozen: bool = True
    mask_depth: int = 12
    mask_width: int = 192
    mask_heads: int = 3
    mask_mlp_width: int = 768

    width: int = 1024
    heads: int = 8  # of both transformers
    view_tokens: int = 9  # learned queries that read the agent's and the goal's view
    spatial_layers: int = 4
    spatial_dropout: float = 0.1
    temporal_layers: int = 4
    window_steps: int = 128  # that an action looks back, its own included
    interactions: int = 9

    reads_previous_action: bool = True
    previous_action_dropout: float = 0.75  # how often training hides it
    action_space: Literal["minecraft", "factored"] = "minecraft"
    action_factors: dict[str, int] | list[list[str | int]] | None = None
    rest_action: list[int] | tuple[int, ...] | None = None
    auxiliary_heads: list[str] | tuple[str, ...] = tuple(AUXILIARY_HEADS)

    def __post_init__(self, **kwargs: Any):
        minecraft = self.action_space == "minecraft"
        if minecraft and self.action_factors is None:
            self.action_factors = dict(MINECRAFT_FACTORS)
        if isinstance(self.action_factors, list):
            self.action_factors = dict(self.action_factors)  # type: ignore[arg-type]
        if self.rest_action is None:
            self.rest_action = MINECRAFT_REST if minecraft else [0] * len(self.action_factors or ())
        super().__post_init__(**kwargs)

    def validate_sizes(self) -> None:
        self.require_positive(
            "patch_size", "rgb_depth", "mask_depth", "view_tokens", "spatial_layers", "temporal_layers",
            "window_steps", "interactions",
        )  # fmt: skip
        self.require_multiples(width="heads", rgb_width="rgb_heads", mask_width="mask_heads")
        if len(self.image_size) != 2 or any(side < 1 or side % self.patch_size for side in self.image_size):
            raise ValueError(
                f"image_size is a height and a width, both multiples of patch_size={self.patch_size}: "
                f"got {list(self.image_size)}"
            )
        for name in ("spatial_dropout", "previous_action_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, got {getattr(self, name)}")

    def validate_actions(self) -> None:
        factors = self.factors
        if not factors or any(choices < 2 for choices in factors.values()):
            raise ValueError(f"action_factors names at least one factor, each of two choices or more: got {factors}")
        if dotted := sorted(name for name in factors if "." in name):
            raise ValueError(f"the name of a factor has no dot: {dotted[0]!r}")
        if self.action_space == "minecraft" and factors != MINECRAFT_FACTORS:
            raise ValueError(f'action_space="minecraft" has the factors {MINECRAFT_FACTORS}, got {factors}')
        rest = self.rest_action or ()
        if len(rest) != len(factors) or not all(0 <= n < m for n, m in zip(rest, factors.values(), strict=True)):
            raise ValueError(f"rest_action is one choice of each of {factors}, got {list(rest)}")

    def validate_heads(self) -> None:
        if wrong := sorted(set(self.auxiliary_heads) - AUXILIARY_HEADS.keys()):
            raise ValueError(f"auxiliary_heads has {wrong[0]!r}; known: {', '.join(AUXILIARY_HEADS)}")

    @property
    def factors(self) -> dict[str, int]:
        """The choices of each factor of an action."""
        assert not isinstance(self.action_factors, list)
        return self.action_factors or {}

    @property
    def grid(self) -> tuple[int, int]:
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size

    @property
    def step_tokens(self) -> int:
        """What one step hands to the temporal transformer: the views, the interaction and the previous action."""
        return self.view_tokens + 1 + self.reads_previous_action

    @property
    def window(self) -> int:
        """How many tokens one token sees, itself included."""
        return self.window_steps * self.step_tokens

    def to_dict(self) -> dict[str, Any]:
        pairs = [[name, choices] for name, choices in self.factors.items()]
        return super().to_dict() | self.written_for_loading() | {"action_factors": pairs}

    def fake_batch(self, batch_size: int = 2, steps: int = 3, goals: int = 2, seed: int = 0) -> GoalBatch:
        """A batch drawn from `seed`: each step has one of the chunk's goals, the last steps of the last are padding."""
        draw = torch.Generator().manual_seed(seed)

        def whole(most: int, *shape: int) -> torch.Tensor:
            return torch.randint(0, most, (batch_size, *shape), generator=draw)

        def actions() -> torch.Tensor:
            return torch.stack([whole(choices, steps) for choices in self.factors.values()], dim=-1)

        is_pad = torch.zeros(batch_size, steps, dtype=torch.bool)
        is_pad[-1, steps // 2 + 1 :] = True
        return GoalBatch(
            images=whole(256, steps, 3, *self.image_size).to(torch.uint8),
            goal_images=whole(256, goals, 3, *self.image_size).to(torch.uint8),
            goal_masks=whole(2, goals, *self.image_size).bool(),
            goal_interactions=whole(self.interactions + 1, goals) - 1,
            goal_index=whole(goals, steps),
            previous_actions=actions(),
            actions=actions(),
            is_pad=is_pad,
            visibility=whole(2, steps).bool(),
            point=torch.rand(batch_size, steps, 2, generator=draw),
            box=torch.rand(batch_size, steps, 4, generator=draw),
        )
