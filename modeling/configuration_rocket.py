"""Configuration of a policy: backbone, robot and, during training, alignment head."""

from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor

from .configuration_openvla import OpenVLAPolicyConfig
from .configuration_pi0 import Pi0Config
from .configuration_smolvla import SmolVLAConfig
from .errors import UserError
from .policy_interface import Batch, resolve_layer
from .size_limits import MAX_SIZES  # noqa: F401  (imported so that the file is published: see __init__.py)
from .strict_config import StrictConfig, suggest_name

POLICY_CONFIGS = {config.model_type: config for config in (Pi0Config, SmolVLAConfig, OpenVLAPolicyConfig)}
Normalization = Literal["identity", "mean_std", "min_max", "quantile"]

# Share of the hidden units that the first layer pair uses with increasing widths; the last pair uses all (ROCKET, eq.
# 13).
MIN_WIDTH_RATIO = 0.2


@strict
class AlignmentConfig(StrictConfig):
    """Configuration of the alignment head: aligned layer pairs, projectors and weight of the loss.

    The defaults are ROCKET's layers for pi0 and pi0.5 with VGGT, and the widths of its projector. The other variants of
    the paper's table 8 are: a single layer pair for Spatial Forcing (arXiv 2510.12276), `projector="independent"` for
    naive multi-layer alignment, and `projector="shared", nesting="none"` for a shared projector of full width.

    Args:
        student_layers: Layers of the policy, from shallow to deep. Layer i is the residual stream after block i, 0 the
            embeddings; negative numbers count from the end, -1 is the stream after the last block.
        teacher_layers: Layers of the 3D vision model, in the same numbering, one for each student layer.
        projector: "shared" for one projector for all layer pairs, "independent" for one per pair.
        nesting: How many hidden units of a shared projector each pair uses: "increasing" from a fifth for the first
            pair to all for the last, "decreasing" for the reverse, "none" for all, "explicit" for `nested_widths`.
        nested_widths: Number of hidden units of each pair; only with `nesting="explicit"`.
        hidden_width: Hidden units of a projector.
        target_width: Channels of the teacher's features.
        weight: Weight of the mean alignment loss in the `loss` that `RocketForActionPrediction.forward` returns (the
            paper's lambda).

    Example:
        ```python
        from rocket_hf import AlignmentConfig

        alignment = AlignmentConfig(student_layers=[4, 9, -1], teacher_layers=[5, 13, 24])
        print(alignment.widths())  # hidden units of each pair: [409, 1228, 2048]
        ```
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
                "student_layers and teacher_layers must have the same length, at least 1: "
                f"got {students} student layers and {teachers} teacher layers"
            )
        self.check_sizes("hidden_width", "target_width")
        if self.weight < 0:
            raise UserError(f"AlignmentConfig.weight must be 0 or positive, got {self.weight}")

    def validate_widths(self) -> None:
        if self.projector == "independent" and self.nesting != "none":
            raise UserError('independent projectors have full width: set nesting="none" or projector="shared"')
        if (self.nesting == "explicit") != (self.nested_widths is not None):
            raise UserError('nested_widths must be given exactly when nesting="explicit"')
        if self.nesting in ("increasing", "decreasing") and len(self.student_layers) == 1:
            raise UserError('a single layer pair cannot be nested: set nesting="none"')
        if self.nested_widths is not None:
            if len(self.nested_widths) != len(self.student_layers):
                raise UserError(
                    f"nested_widths must have one width per layer pair: got {len(self.nested_widths)} "
                    f"for {len(self.student_layers)} pairs"
                )
            if not all(1 <= width <= self.hidden_width for width in self.nested_widths):
                raise UserError(f"nested_widths must lie in 1..hidden_width={self.hidden_width}: {self.nested_widths}")

    def widths(self) -> list[int]:
        """Return the number of projector hidden units that each layer pair uses, from shallow to deep."""
        count = len(self.student_layers)
        if self.nested_widths is not None:
            return list(self.nested_widths)
        if self.nesting == "none":
            return [self.hidden_width] * count
        ratios = (MIN_WIDTH_RATIO + (1 - MIN_WIDTH_RATIO) * index / (count - 1) for index in range(count))
        widths = [max(1, int(self.hidden_width * ratio)) for ratio in ratios]
        return widths if self.nesting == "increasing" else widths[::-1]

    def pairs(self, depth: int) -> list[tuple[int, int]]:
        """Return the pairs (resolved student layer, teacher layer as written) from shallow to deep.

        Args:
            depth: Number of blocks of the policy, to resolve negative student layers.
        """
        students = [resolve_layer(layer, depth) for layer in self.student_layers]
        pairs = list(zip(students, self.teacher_layers, strict=True))
        if students != sorted(students) or len(set(pairs)) != len(pairs):
            raise UserError(f"student_layers must go from shallow to deep without repeating a pair, got {pairs}")
        return pairs


@strict
class RocketConfig(StrictConfig):
    """Configuration of a policy for one robot, with an alignment head during training.

    Args:
        type: Name under which lerobot's tools find the policy class; always "rocket".
        policy_config: Configuration of the backbone: a `Pi0Config`, `SmolVLAConfig` or `OpenVLAPolicyConfig`, or a dict
            with its `model_type`. The default is pi0.
        alignment: `AlignmentConfig`, or None for a policy without an alignment head. Published policies have None.
        cameras: Names of the robot's cameras, in the order in which the policy reads them.
        state_dim: Length of the robot's state.
        action_dim: Length of the robot's action.
        state_names: Name of each state dimension, if known.
        action_names: Name of each action dimension, if known.
        fps: Rate in Hz at which the actions of a chunk follow each other, if known.
        example_task: A task of the training data, if known.
        datasets: Names of the datasets that the policy was trained on, if known.
        chunk_size: Number of consecutive actions that the policy predicts at once.
        state_normalization: How the processor normalizes the state: "identity", "mean_std", "min_max" (to [-1, 1]) or
            "quantile" (1 % and 99 % quantiles to -1 and 1).
        action_normalization: How the processor normalizes the actions.
        clip_normalized: Whether the processor clips normalized states and actions to [-1, 1] ("min_max" and "quantile"
            only), in training and inference, as the public code of OpenVLA and OpenVLA-OFT does.

    Example:
        ```python
        from rocket_hf import Pi0Config, RocketConfig

        config = RocketConfig(
            policy_config=Pi0Config(variant="pi05"),
            cameras=["front", "wrist"],
            state_dim=6,
            action_dim=6,
            chunk_size=30,
        )
        batch = config.fake_batch(batch_size=2)
        print(batch["images"].shape)  # (2, 2, 3, 224, 224)
        ```
    """

    model_type = "rocket"
    sub_configs = {"policy_config": StrictConfig, "alignment": AlignmentConfig}

    type: Literal["rocket"] = "rocket"
    policy_config: Any = None
    alignment: Any = None

    cameras: list[str] | tuple[str, ...] = ("image",)
    state_dim: int = 8
    action_dim: int = 7
    state_names: list[str] | tuple[str, ...] | None = None
    action_names: list[str] | tuple[str, ...] | None = None
    fps: int | float | None = None
    example_task: str | None = None
    datasets: list[str] | tuple[str, ...] | None = None
    chunk_size: int = 50
    state_normalization: Normalization = "mean_std"
    action_normalization: Normalization = "mean_std"
    clip_normalized: bool = False

    def __post_init__(self, **kwargs: Any):
        self.policy_config = build_sub_config(
            self.policy_config or {"model_type": Pi0Config.model_type}, POLICY_CONFIGS
        )
        if self.alignment is not None:
            self.alignment = build_sub_config(
                self.alignment, {AlignmentConfig.model_type: AlignmentConfig}, AlignmentConfig.model_type
            )
        super().__post_init__(**kwargs)

    def validate_robot(self) -> None:
        self.check_sizes("state_dim", "action_dim", "chunk_size")
        if not 1 <= len(self.cameras) <= 4 or len(set(self.cameras)) != len(self.cameras):
            raise UserError(f"cameras must be 1 to 4 different names, got {list(self.cameras)}")
        for part in ("state", "action"):
            names, dim = getattr(self, f"{part}_names"), getattr(self, f"{part}_dim")
            if names is not None and len(names) != dim:
                raise UserError(f"{part}_names has {len(names)} names, but {part}_dim is {dim}")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise UserError(f"fps must be a finite number above 0, got {self.fps}")

    def validate_limits(self) -> None:
        """Check the robot against the backbone's limits; None means no limit."""
        sizes = {"cameras": len(self.cameras)}
        sizes |= {name: getattr(self, name) for name in ("state_dim", "action_dim", "chunk_size")}
        for name, size in sizes.items():
            limit = getattr(self.policy_config, f"max_{name}")
            if limit is not None and size > limit:
                raise UserError(f"{name}={size} is above policy_config.max_{name}={limit}")

    def validate_layers(self) -> None:
        if self.alignment is not None:
            self.alignment.pairs(self.policy_config.depth)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of the images of one sample: (cameras, 3, height, width)."""
        return len(self.cameras), 3, self.policy_config.image_size, self.policy_config.image_size

    def to_dict(self) -> dict[str, Any]:
        """Return the content of config.json; without an alignment head it has no key "alignment"."""
        own = {key: value for key, value in super().to_dict().items() if key != "alignment" or value is not None}
        return own | self.loading_keys()

    def fake_batch(self, batch_size: int = 2, prompt_length: int = 6, seed: int = 0) -> Batch:
        """Return a random batch with the shapes that the processor gives, for tests and dry runs.

        All cameras are present, the prompts have different lengths, and the last steps of the last sample are padding.

        Args:
            batch_size: Number of samples.
            prompt_length: Number of tokens of the longest prompt.
            seed: Seed of the random numbers.
        """
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
        """Return random teacher features for `fake_batch` by teacher layer: (B, V, T, target_width)."""
        draw = torch.Generator().manual_seed(seed)
        rows, columns = self.policy_config.image_grid
        shape = (batch_size, len(self.cameras), rows * columns, self.alignment.target_width)
        return {layer: torch.randn(shape, generator=draw) for layer in self.alignment.teacher_layers}


def build_sub_config(value: Any, known: dict[str, type[StrictConfig]], default: str | None = None) -> StrictConfig:
    """Return `value` if it is a configuration, or create one from a dict, chosen by its key "model_type"."""
    if isinstance(value, StrictConfig) and type(value).model_type in known:
        return value
    if not isinstance(value, dict):
        raise UserError(f"expected {' or '.join(kind.__name__ for kind in known.values())} or a dict, got {value!r}")
    model_type = value.get("model_type", default)
    if model_type not in known:
        raise UserError(f"unknown model_type {model_type!r}: {suggest_name(str(model_type), known)}")
    return known[model_type](**value)
