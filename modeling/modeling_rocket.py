"""Model of a robot policy with, during training, its alignment head.

- `forward` returns the named losses and their weighted sum.
- `predict_action_chunk` returns normalized actions, which the processor converts to robot units.
- `for_inference` drops the alignment head. Loading is strict: of all weights only the whole head may be missing or
  superfluous.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Generator, Tensor, nn
from transformers import initialization as init
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

from .alignment_head import AlignmentHead, ProjectorLinear
from .attention import MASKED  # noqa: F401  (imported so that the file is published: see __init__.py)
from .configuration_openvla import OpenVLAPolicyConfig
from .configuration_pi0 import Pi0Config
from .configuration_rocket import RocketConfig
from .configuration_smolvla import SmolVLAConfig
from .dual_vit_tower import DualVitTower  # noqa: F401
from .errors import UserError
from .finite_checks import PREDICTED, finite_flags, raise_if_not_finite
from .flow_matching import TIME_OFFSET  # noqa: F401
from .flow_matching_policy import FlowMatchingPolicy  # noqa: F401
from .gemma_layers import ZeroInitLinear
from .joint_transformer import JointLayer  # noqa: F401
from .llama_layers import LlamaNorm
from .openvla_actions import ActionHead  # noqa: F401
from .policy_interface import Batch, Policy, RocketOutput, check_batch, weighted_loss
from .policy_openvla import create_openvla_policy
from .policy_pi0 import Pi0Policy
from .policy_smolvla import SmolVLAPolicy
from .robot_adaptation import config_for_robot, find_new_layers, read_robot
from .self_test import SelfTestReport, read_self_test, run_self_test, self_test_path
from .siglip_tower import SiglipTower  # noqa: F401
from .size_limits import MAX_SIZES  # noqa: F401
from .stored_weights import Shapes  # noqa: F401
from .strict_config import StrictConfig  # noqa: F401
from .strict_model import StrictModel
from .vit_block import LayerScale

# Function that creates the backbone from a RocketConfig, by the model_type of its policy_config.
BACKBONES: dict[str, Callable[[RocketConfig], Policy]] = {
    Pi0Config.model_type: Pi0Policy,
    SmolVLAConfig.model_type: SmolVLAPolicy,
    OpenVLAPolicyConfig.model_type: create_openvla_policy,
}
ALIGNMENT_HEAD_PREFIX = "alignment_head."  # of the names of its weights


class RocketForActionPrediction(StrictModel):
    """Vision-language-action policy, with an alignment head during training.

    The backbone is pi0, pi0.5, SmolVLA, OpenVLA or OpenVLA-OFT, depending on `config.policy_config`. If the
    configuration has an `alignment`, the model has an alignment head, and `forward` takes the features of a 3D vision
    model as `targets`. transformers' `Trainer` can train the model, with `remove_unused_columns=False` because the
    inputs are keyword arguments.

    Args:
        config: Backbone, robot and alignment.

    Attributes:
        config (RocketConfig): The configuration.
        policy (Policy): The backbone.
        alignment_head (AlignmentHead | None): The alignment head, if the configuration has one.
        new_layers (list[str]): Names of layers that `for_robot` initialized and that have not been trained.

    Example:
        ```python
        import torch

        from rocket_hf import AlignmentConfig, RocketConfig, RocketForActionPrediction, SmolVLAConfig

        backbone = SmolVLAConfig(depth=2, vision_depth=2, image_size=64, vocab_size=512)
        alignment = AlignmentConfig(student_layers=[1, -1], teacher_layers=[5, 24], hidden_width=64, target_width=32)
        model = RocketForActionPrediction(RocketConfig(policy_config=backbone, alignment=alignment))

        batch = model.config.fake_batch(batch_size=2)
        output = model.train()(**batch, targets=model.config.fake_targets(batch_size=2))
        output.loss.backward()
        print({name: round(loss.item(), 2) for name, loss in output.losses.items()})

        policy = model.for_inference()
        actions = policy.predict_action_chunk(**batch, generator=torch.Generator().manual_seed(0))
        print(actions.shape)  # (2, 50, 7): samples, steps, action dimensions
        ```
    """

    config_class = RocketConfig
    main_input_name = "images"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # Empty, because FSDP rejects names of modules that a model does not have: transformers adds those of the backbone.
    _no_split_modules: list[str] = []
    _keep_in_fp32_modules_strict = ["alignment_head"]

    def __init__(self, config: RocketConfig):
        super().__init__(config)
        config._attn_implementation = config._attn_implementation  # the setter copies it to the inner configurations
        policy = config.policy_config
        self.policy: Policy = BACKBONES[policy.model_type](config)
        self.new_layers: list[str] = []
        self.alignment_head: AlignmentHead | None = None
        if config.alignment is not None:
            self.alignment_head = AlignmentHead(config.alignment, policy.width, policy.depth)
        else:
            self._keys_to_ignore_on_load_unexpected = [rf"^{ALIGNMENT_HEAD_PREFIX}"]
        self.post_init()

    def forward(
        self,
        targets: dict[int, Tensor] | None = None,
        generator: Generator | None = None,
        **batch: Unpack[Batch],
    ) -> RocketOutput:
        """Compute the losses of a batch.

        Args:
            targets: Teacher features by teacher layer as written in the configuration, each (B, V, T, target_width) on
                the grid of the policy's image tokens, zeros where a token has none. Required in training mode if the
                model has an alignment head; without them the head is not run.
            generator: Source of all random numbers (noise and time of flow matching); torch's global one by default.
            **batch: Inputs of the model (see `Batch`), as the processor makes them, with "actions".

        Returns:
            `RocketOutput` with `loss`, the weighted sum, and `losses`, every loss by name: "action/..." and, for each
            aligned layer pair, "alignment/STUDENT-TEACHER".
        """
        self.check_inputs(batch, {"actions"})
        if not self.training or batch["images"].device.type == "cpu":
            # On other devices, a training step would wait for the result. There, NaN appears in the loss.
            raise_if_not_finite(finite_flags(batch))
        head = self.alignment_head
        if targets is None:
            if head is not None and self.training:
                raise ValueError(
                    "training a model with an alignment head needs `targets`, the teacher's features; to train without "
                    "them, load the model with alignment=None"
                )
            losses = self.policy(batch, (), generator).losses
            return RocketOutput(loss=weighted_loss(losses, 0.0), losses=losses)
        if head is None:
            raise ValueError(
                "the model has no alignment head for the given `targets`: load it with alignment=AlignmentConfig(...)"
            )
        self.check_targets(targets, batch)
        output = self.policy(batch, head.taps, generator)
        losses = output.losses | head(output.taps, targets, batch["camera_mask"])
        return RocketOutput(loss=weighted_loss(losses, self.config.alignment.weight), losses=losses)

    @torch.no_grad()
    def predict_action_chunk(self, generator: Generator | None = None, **batch: Unpack[Batch]) -> Tensor:
        """Predict the next actions.

        Args:
            generator: Source of the noise of flow matching, unless the batch has "noise". The same generator state or
                noise gives the same actions.
            **batch: Inputs of the model (see `Batch`), as the processor makes them.

        Returns:
            Normalized actions (B, chunk, action_dim). `RocketProcessor.unnormalize_actions` converts them to robot
            units. Inputs or actions that are not finite raise `UserError`.
        """
        self.check_inputs(batch, set())
        flags = finite_flags(batch)
        actions = self.policy.predict_action_chunk(batch, generator)[..., : self.config.action_dim]
        raise_if_not_finite(flags | finite_flags({PREDICTED: actions}))  # the only place that waits for the device
        return actions

    def self_test(self) -> SelfTestReport:
        """Check that this published policy gives the actions that it gave when it was published.

        The file self_test.safetensors, from where the weights were loaded, holds inputs and actions.

        Returns:
            The measured differences. `UserError` describes the first one that exceeds its tolerance.
        """
        return run_self_test(self, read_self_test(self_test_path(self)))

    def check_inputs(self, batch: Batch, required: set[str]) -> None:
        """Raise `ValueError` if the batch lacks an input or has a wrong shape; `required` adds to the usual inputs."""
        config = self.config
        required = {"images", "camera_mask", "input_ids", "attention_mask"} | required
        if config.policy_config.reads_state:
            required.add("state")
        shapes = {
            "images": config.image_shape,
            "camera_mask": (len(config.cameras),),
            "state": (config.state_dim,),
            "actions": (config.chunk_size, config.action_dim),
            "action_is_pad": (config.chunk_size,),
            "action_mask": (config.action_dim,),
            "time": (),
        }
        if config.policy_config.draws_noise:
            shapes["noise"] = (config.chunk_size, config.policy_config.max_action_dim)
        check_batch(batch, required, shapes)

    def check_targets(self, targets: dict[int, Tensor], batch: Batch) -> None:
        """Raise `ValueError` if a teacher layer is missing or has a wrong shape."""
        rows, columns = self.config.policy_config.image_grid
        shape = (*batch["camera_mask"].shape, rows * columns, self.config.alignment.target_width)
        for layer in self.config.alignment.teacher_layers:
            if layer not in targets:
                raise ValueError(f"targets lack teacher layer {layer}; they have {', '.join(map(str, targets))}")
            if tuple(targets[layer].shape) != shape:
                raise ValueError(f"targets[{layer}] must be {shape}, got {tuple(targets[layer].shape)}")

    def for_inference(self) -> "RocketForActionPrediction":
        """Return a new model in eval mode without the alignment head; it shares the weights of this one."""
        config = type(self.config).from_dict(self.config.to_dict(), alignment=None)
        config._attn_implementation = self.config._attn_implementation
        with torch.device("meta"):
            model = type(self)(config)
        kept = {name: value for name, value in self.state_dict().items() if not name.startswith(ALIGNMENT_HEAD_PREFIX)}
        model.load_state_dict(kept, strict=True, assign=True)
        return model.eval()

    @torch.no_grad()
    def for_robot(
        self, robot: Mapping[str, Any] | str | Path, revision: str | None = None
    ) -> "RocketForActionPrediction":
        """Return this policy for another robot, as a new model that shares the weights which still fit.

        Layers whose sizes depend on the robot are newly initialized; `new_layers` of the result has their names.

        Args:
            robot: Keys of `RocketConfig` that describe the robot (cameras, dimensions, names, chunk size,
                normalization), or the folder or Hub repository of an adapter, whose weights can then be loaded into the
                result.
            revision: Revision of the adapter's repository.

        Example:
            ```python
            from rocket_hf import RocketConfig, RocketForActionPrediction, SmolVLAConfig

            backbone = SmolVLAConfig(depth=2, vision_depth=2, image_size=64, vocab_size=512)
            base = RocketForActionPrediction(RocketConfig(policy_config=backbone))
            model = base.for_robot({"cameras": ["top"], "state_dim": 4, "action_dim": 3, "chunk_size": 8})
            print(model.config.action_dim, model.new_layers)
            ```
        """
        robot = robot if isinstance(robot, Mapping) else read_robot(robot, revision)
        config = config_for_robot(self.config, robot)
        config._attn_implementation = self.config._attn_implementation
        weights = self.state_dict()
        with torch.device("meta"):
            model = type(self)(config)
        model.new_layers = find_new_layers(model, weights)
        kept = {name: value for name, value in weights.items() if name.rpartition(".")[0] not in model.new_layers}
        model.load_state_dict(kept, strict=False, assign=True)
        for name in model.new_layers:
            layer = model.get_submodule(name).to_empty(device=self.device).to(self.dtype)
            model._init_weights(layer)
        return model.train(self.training)

    def set_attn_implementation(self, attn_implementation: str, **_: Any) -> None:
        """Select an attention implementation of the backbone: "eager" or "sdpa".

        This replaces transformers' method, which would not change the configurations inside `policy_config`.
        """
        supported = self.policy.attention_implementations
        if attn_implementation not in supported:
            raise UserError(f"attn_implementation must be one of {', '.join(supported)}, got {attn_implementation!r}")
        self.config._attn_implementation = attn_implementation

    @classmethod
    def training_heads(cls) -> tuple[str, ...]:
        """Return the prefix of the names of the alignment head's weights.

        A policy can be loaded into a model with a new head (`alignment=AlignmentConfig(...)`), and a training
        checkpoint into a model without one (`alignment=None`).
        """
        return (ALIGNMENT_HEAD_PREFIX,)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize one module by its class. transformers calls this for modules that have weights of their own."""
        if isinstance(module, ProjectorLinear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, ZeroInitLinear):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)
            if isinstance(module, GemmaRMSNorm):
                init.zeros_(module.weight)  # Gemma multiplies by 1 + weight
            elif isinstance(module, LlamaNorm):
                init.ones_(module.weight)
            elif isinstance(module, LayerScale):
                init.constant_(module.weight, LayerScale.INITIAL_VALUE)
