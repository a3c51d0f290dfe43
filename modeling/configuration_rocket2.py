"""Configuration of a ROCKET-2 policy: sizes of its encoders and transformers, action space and auxiliary heads."""

from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict

from .errors import UserError
from .rocket2_interface import Rocket2Batch
from .size_limits import check_size
from .strict_config import StrictConfig

# Id of what the agent has to do with the object under the goal mask; -1 for no interaction.
INTERACTIONS = {"none": -1, "hunt": 0, "mine": 2, "use": 3, "craft": 4, "switch": 5, "approach": 6}

# Auxiliary heads, which train the encoders, and the number of their outputs: a logit; (y, x); (x0, y0, x1, y1).
AUXILIARY_HEADS = {"visibility": 1, "point": 2, "box": 4}

# Minecraft's action factors: button combinations, of which the last opens the inventory, and 11 x 11 camera movements.
MINECRAFT_FACTORS = {"buttons": 8641, "camera": 121}
MINECRAFT_REST = (0, 60)


@strict
class Rocket2Config(StrictConfig):
    """Configuration of a ROCKET-2 policy (arXiv 2503.02505).

    The defaults are those of the smaller public checkpoint, `1x`; the larger one, `1.5x`, has width 1536 and 16 heads.
    An action consists of one choice from each action factor.

    Args:
        image_size: Height and width of the images, in pixels.
        patch_size: Side of an image patch, in pixels.
        rgb_depth: Blocks of the image encoder.
        rgb_width: Width of the image encoder.
        rgb_heads: Attention heads of the image encoder.
        rgb_mlp_width: Hidden units of the image encoder's MLPs.
        rgb_frozen: Whether the image encoder is excluded from training.
        mask_depth: Blocks of the goal mask encoder.
        mask_width: Width of the goal mask encoder.
        mask_heads: Attention heads of the goal mask encoder.
        mask_mlp_width: Hidden units of the goal mask encoder's MLPs.
        width: Width of the spatial and the temporal transformer.
        heads: Attention heads of both transformers.
        view_tokens: Learned queries that read the agent's view and the goal's view.
        spatial_layers: Layers of the spatial transformer.
        spatial_dropout: Dropout of the spatial transformer.
        temporal_layers: Layers of the temporal transformer.
        window_steps: Number of steps that an action depends on, including its own.
        interactions: Number of kinds of interaction with the goal.
        reads_previous_action: Whether the previous action is an input.
        previous_action_dropout: Probability with which training hides a previous action.
        action_space: "minecraft" for Minecraft's two factors, "factored" for those of `action_factors`.
        action_factors: Number of choices of each factor by its name, in the order of an action's columns. config.json
            holds them as pairs, because transformers sorts the keys of the dicts that it writes.
        rest_action: Choice of each factor that does nothing; the first choices by default.
        auxiliary_heads: Heads to create: "visibility", "point" and "box" of the goal in the agent's view.

    Example:
        ```python
        from rocket_hf import Rocket2Config

        config = Rocket2Config(
            image_size=(96, 128), action_space="factored", action_factors={"forward": 2, "turn": 3}
        )
        batch = config.fake_batch(batch_size=2, steps=4)
        print(batch["actions"].shape)  # (2, 4, 2): episodes, steps, factors
        ```
    """

    model_type = "rocket2"

    image_size: list[int] | tuple[int, ...] = (224, 224)
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
    heads: int = 8
    view_tokens: int = 9
    spatial_layers: int = 4
    spatial_dropout: float = 0.1
    temporal_layers: int = 4
    window_steps: int = 128
    interactions: int = 9

    reads_previous_action: bool = True
    previous_action_dropout: float = 0.75
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
        self.check_sizes(
            "patch_size", "rgb_depth", "mask_depth", "view_tokens", "spatial_layers", "temporal_layers",
            "window_steps", "interactions", "width", "rgb_width", "mask_width", "rgb_mlp_width", "mask_mlp_width",
            "heads", "rgb_heads", "mask_heads",
        )  # fmt: skip
        self.require_multiples(width="heads", rgb_width="rgb_heads", mask_width="mask_heads")
        if len(self.image_size) != 2 or any(side < 1 or side % self.patch_size for side in self.image_size):
            raise UserError(
                f"image_size must be a height and a width, both multiples of patch_size={self.patch_size}: "
                f"got {list(self.image_size)}"
            )
        for side in self.image_size:
            check_size("Rocket2Config", "image_size", side)
        for name in ("spatial_dropout", "previous_action_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must be a probability, got {getattr(self, name)}")

    def validate_actions(self) -> None:
        factors = self.factors
        if not factors or any(choices < 2 for choices in factors.values()):
            raise UserError(
                f"action_factors must have at least one factor, each with at least two choices: got {factors}"
            )
        if dotted := sorted(name for name in factors if "." in name):
            raise UserError(f"the name of an action factor must not contain a dot, got {dotted[0]!r}")
        if self.action_space == "minecraft" and factors != MINECRAFT_FACTORS:
            raise UserError(f'action_space="minecraft" requires action_factors={MINECRAFT_FACTORS}, got {factors}')
        rest = self.rest_action or ()
        if len(rest) != len(factors) or not all(0 <= n < m for n, m in zip(rest, factors.values(), strict=True)):
            raise UserError(f"rest_action must have one choice of each of {factors}, got {list(rest)}")

    def validate_heads(self) -> None:
        if unknown := sorted(set(self.auxiliary_heads) - AUXILIARY_HEADS.keys()):
            raise UserError(f"auxiliary_heads has the unknown head {unknown[0]!r}; known: {', '.join(AUXILIARY_HEADS)}")

    @property
    def factors(self) -> dict[str, int]:
        """Number of choices of each action factor, in the order of an action's columns."""
        assert not isinstance(self.action_factors, list)
        return self.action_factors or {}

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image patches."""
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size

    @property
    def step_tokens(self) -> int:
        """Number of tokens of one step in the temporal transformer: views, interaction and previous action."""
        return self.view_tokens + 1 + self.reads_previous_action

    @property
    def window(self) -> int:
        """Number of tokens that one token attends to, including itself."""
        return self.window_steps * self.step_tokens

    def to_dict(self) -> dict[str, Any]:
        pairs = [[name, choices] for name, choices in self.factors.items()]
        return super().to_dict() | self.loading_keys() | {"action_factors": pairs}

    def fake_batch(self, batch_size: int = 2, steps: int = 3, goals: int = 2, seed: int = 0) -> Rocket2Batch:
        """Return a random batch with the shapes of training data, for tests and dry runs.

        Each step has one of its chunk's goals; the last steps of the last sample are padding.

        Args:
            batch_size: Number of episodes.
            steps: Number of steps of each chunk.
            goals: Number of goals of each chunk.
            seed: Seed of the random numbers.
        """
        draw = torch.Generator().manual_seed(seed)

        def integers(limit: int, *shape: int) -> torch.Tensor:
            return torch.randint(0, limit, (batch_size, *shape), generator=draw)

        def actions() -> torch.Tensor:
            return torch.stack([integers(choices, steps) for choices in self.factors.values()], dim=-1)

        is_pad = torch.zeros(batch_size, steps, dtype=torch.bool)
        is_pad[-1, steps // 2 + 1 :] = True
        return Rocket2Batch(
            images=integers(256, steps, 3, *self.image_size).to(torch.uint8),
            goal_images=integers(256, goals, 3, *self.image_size).to(torch.uint8),
            goal_masks=integers(2, goals, *self.image_size).bool(),
            goal_interactions=integers(self.interactions + 1, goals) - 1,
            goal_index=integers(goals, steps),
            previous_actions=actions(),
            actions=actions(),
            is_pad=is_pad,
            visibility=integers(2, steps).bool(),
            point=torch.rand(batch_size, steps, 2, generator=draw),
            box=torch.rand(batch_size, steps, 4, generator=draw),
        )
