"""What a published policy is: the backbone's sizes, the robot it drives and, while it trains, its alignment head."""

from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor

from .configuration_openvla import OpenVLAPolicyConfig
from .configuration_pi0 import Pi0Config
from .configuration_smolvla import SmolVLAConfig
from .errors import UserError
from .policy_interface import Batch, resolve_layer
from .strict_config import StrictConfig, nearest

POLICY_CONFIGS = {config.model_type: config for config in (Pi0Config, SmolVLAConfig, OpenVLAPolicyConfig)}
Normalization = Literal["identity", "mean_std", "min_max", "quantile"]

# ROCKET, eq. 13 and its code: the first of N pairs uses a fifth of the hidden units, the last all of them.
NARROWEST = 0.2


@strict
class AlignmentConfig(StrictConfig):
    """Which layers are aligned, and how wide a part of which projector each pair uses.

    The variants of the paper's table 8: a single pair is Spatial Forcing (arXiv 2510.12276); `projector` "independent"
    the naive multi-layer alignment; "shared" with `nesting` "none" the shared projector, "increasing" ROCKET. The
    default layers are ROCKET's for pi0 and pi0.5 with VGGT, the default widths those of its projector.
    """

    model_type = "rocket_alignment"

    student_layers: list[int] | tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 9, 10, -1)
    teacher_layers: list[int] | tuple[int, ...] = (3, 5, 7, 9, 11, 13, 15, 17, 19, 24)
    projector: Literal["shared", "independent"] = "shared"
    nesting: Literal["none", "increasing", "decreasing", "explicit"] = "increasing"
    nested_widths: list[int] | tuple[int, ...] | None = None
    hidden_width: int = 2048
    target_width: int = 2048
    weight: float = 0.5

    def validate_pairs(self) -> None:
        students, teachers = len(self.student_layers), len(self.teacher_layers)
        if students != teachers or not students:
            raise UserError(
                "student_layers and teacher_layers are pairs, at least one: "
                f"got {students} student layers and {teachers} teacher layers"
            )
        self.require_positive("hidden_width", "target_width")
        if self.weight < 0:
            raise UserError(f"AlignmentConfig.weight must be 0 or positive, got {self.weight}")

    def validate_widths(self) -> None:
        if self.projector == "independent" and self.nesting != "none":
            raise UserError('independent projectors have full width: set nesting="none", or projector="shared"')
        if (self.nesting == "explicit") != (self.nested_widths is not None):
            raise UserError('nested_widths is given exactly when nesting="explicit"')
        if self.nesting in ("increasing", "decreasing") and len(self.student_layers) == 1:
            raise UserError('a single pair has nothing to nest: set nesting="none"')
        if self.nested_widths is not None:
            if len(self.nested_widths) != len(self.student_layers):
                raise UserError(
                    f"nested_widths needs one width per pair: got {len(self.nested_widths)} "
                    f"for {len(self.student_layers)} pairs"
                )
            if not all(1 <= width <= self.hidden_width for width in self.nested_widths):
                raise UserError(f"nested_widths must lie in 1..hidden_width={self.hidden_width}: {self.nested_widths}")

    def widths(self) -> list[int]:
        """The number of hidden units of each pair, from the shallowest to the deepest."""
        count = len(self.student_layers)
        if self.nested_widths is not None:
            return list(self.nested_widths)
        if self.nesting == "none":
            return [self.hidden_width] * count
        ratios = (NARROWEST + (1 - NARROWEST) * index / (count - 1) for index in range(count))
        widths = [max(1, int(self.hidden_width * ratio)) for ratio in ratios]
        return widths if self.nesting == "increasing" else widths[::-1]

    def pairs(self, depth: int) -> list[tuple[int, int]]:
        """(student layer, resolved; teacher layer, as written), from the shallowest to the deepest."""
        students = [resolve_layer(layer, depth) for layer in self.student_layers]
        pairs = list(zip(students, self.teacher_layers, strict=True))
        if students != sorted(students) or len(set(pairs)) != len(pairs):
            raise UserError(f"student_layers must go from shallow to deep and no pair may repeat: {pairs}")
        return pairs


@strict
class RocketConfig(StrictConfig):
    """A policy for one robot. Cameras stand in the order in which the policy sees them; dimensions are the robot's."""

    model_type = "rocket"
    sub_configs = {"policy_config": StrictConfig, "alignment": AlignmentConfig}

    type: Literal["rocket"] = "rocket"  # what lerobot's tools know a policy by
    policy_config: Any = None
    alignment: Any = None

    cameras: list[str] | tuple[str, ...] = ("image",)
    state_dim: int = 8
    action_dim: int = 7
    state_names: list[str] | tuple[str, ...] | None = None
    action_names: list[str] | tuple[str, ...] | None = None
    chunk_size: int = 50
    state_normalization: Normalization = "mean_std"
    action_normalization: Normalization = "mean_std"

    def __post_init__(self, **kwargs: Any):
        self.policy_config = build(self.policy_config or {"model_type": Pi0Config.model_type}, POLICY_CONFIGS)
        if self.alignment is not None:
            self.alignment = build(
                self.alignment, {AlignmentConfig.model_type: AlignmentConfig}, AlignmentConfig.model_type
            )
        super().__post_init__(**kwargs)

    def validate_robot(self) -> None:
        self.require_positive("state_dim", "action_dim", "chunk_size")
        if not 1 <= len(self.cameras) <= 4 or len(set(self.cameras)) != len(self.cameras):
            raise UserError(f"cameras must be 1 to 4 different names, got {list(self.cameras)}")
        for part in ("state", "action"):
            names, dim = getattr(self, f"{part}_names"), getattr(self, f"{part}_dim")
            if names is not None and len(names) != dim:
                raise UserError(f"{part}_names has {len(names)} names, {part}_dim is {dim}")

    def validate_limits(self) -> None:
        """Where a backbone has no limit, it says None."""
        sizes = {"cameras": len(self.cameras)}
        sizes |= {name: getattr(self, name) for name in ("state_dim", "action_dim", "chunk_size")}
        for name, size in sizes.items():
            most = getattr(self.policy_config, f"max_{name}")
            if most is not None and size > most:
                raise UserError(f"{name}={size} is above policy_config.max_{name}={most}")

    def validate_layers(self) -> None:
        if self.alignment is not None:
            self.alignment.pairs(self.policy_config.depth)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one sample: (cameras, 3, height, width)."""
        return len(self.cameras), 3, self.policy_config.image_size, self.policy_config.image_size

    def to_dict(self) -> dict[str, Any]:
        """A policy without a head has no trace of one in its file."""
        own = {key: value for key, value in super().to_dict().items() if key != "alignment" or value is not None}
        return own | self.written_for_loading()

    def fake_batch(self, batch_size: int = 2, prompt_length: int = 6, seed: int = 0) -> Batch:
        """A batch as the processor would make it, drawn from `seed`: all cameras present, the prompts of different
        lengths, the last steps of the last sample padding."""
        draw = torch.Generator().manual_seed(seed)
        lengths = torch.tensor([max(1, prompt_length - index) for index in range(batch_size)])
        is_pad = torch.zeros(batch_size, self.chunk_size, dtype=torch.bool)
        is_pad[-1, self.chunk_size // 2 + 1 :] = True
        return Batch(
            images=torch.randint(0, 256, (batch_size, *self.image_shape), generator=draw, dtype=torch.uint8),
            camera_mask=torch.ones(batch_size, len(self.cameras), dtype=torch.bool),
            input_ids=torch.randint(0, self.policy_config.vocab_size, (batch_size, prompt_length), generator=draw),
            attention_mask=(torch.arange(prompt_length) < lengths[:, None]).long(),
            state=torch.randn(batch_size, self.state_dim, generator=draw),
            actions=torch.randn(batch_size, self.chunk_size, self.action_dim, generator=draw),
            action_is_pad=is_pad,
            episode_index=torch.arange(batch_size),
            frame_index=torch.randint(0, 100, (batch_size,), generator=draw),
        )

    def fake_targets(self, batch_size: int = 2, seed: int = 0) -> dict[int, Tensor]:
        """Teacher features for `fake_batch`, on the student's grid, by teacher layer."""
        draw = torch.Generator().manual_seed(seed)
        rows, columns = self.policy_config.image_grid
        shape = (batch_size, len(self.cameras), rows * columns, self.alignment.target_width)
        return {layer: torch.randn(shape, generator=draw) for layer in self.alignment.teacher_layers}


def build(value: Any, known: dict[str, type[StrictConfig]], default: str | None = None) -> StrictConfig:
    """A sub-configuration from what the user or a file gave: the object itself, or a dict that names its model_type."""
    if isinstance(value, StrictConfig) and type(value).model_type in known:
        return value
    if not isinstance(value, dict):
        raise UserError(f"expected {' or '.join(kind.__name__ for kind in known.values())} or a dict, got {value!r}")
    model_type = value.get("model_type", default)
    if model_type not in known:
        raise UserError(f"unknown model_type {model_type!r}: {nearest(str(model_type), known)}")
    return known[model_type](**value)
