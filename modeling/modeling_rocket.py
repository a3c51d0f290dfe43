"""The model: a policy and, while it trains, its alignment head.

- `forward` returns named losses; who trains multiplies them by weights and sums once.
- `predict_action_chunk` returns normalized actions, which the processor turns into robot units.
- `for_inference` drops the head. Loading is strict: only a head may be missing, whole, or left behind.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Generator, Tensor, nn
from transformers import initialization as init
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

from .alignment_head import AlignmentHead, ProjectorLinear
from .attention import MASKED  # noqa: F401  (named here so that it is shipped: see the package)
from .configuration_openvla import OpenVLAPolicyConfig
from .configuration_pi0 import Pi0Config
from .configuration_rocket import RocketConfig
from .configuration_smolvla import SmolVLAConfig
from .dual_vit_tower import DualVitTower  # noqa: F401
from .errors import UserError
from .flow_matching import TIME_OFFSET  # noqa: F401
from .flow_matching_policy import FlowMatchingPolicy  # noqa: F401
from .gemma_layers import Modulation
from .joint_transformer import JointLayer  # noqa: F401
from .llama_layers import LlamaNorm
from .openvla_actions import ActionHead  # noqa: F401
from .policy_interface import Batch, Policy, RocketOutput, check_batch, weighted_loss
from .policy_openvla import make_openvla_policy
from .policy_pi0 import Pi0Policy
from .policy_smolvla import SmolVLAPolicy
from .robot_adaptation import config_for_robot, new_layers, read_robot
from .self_test import SelfTestReport, own_self_test, read_self_test, run_self_test
from .siglip_tower import SiglipTower  # noqa: F401
from .strict_config import StrictConfig  # noqa: F401
from .strict_model import StrictModel
from .vit_block import LayerScale

# Makes the policy of a whole RocketConfig, by the model_type of its policy_config.
POLICIES: dict[str, Callable[[RocketConfig], Policy]] = {
    Pi0Config.model_type: Pi0Policy,
    SmolVLAConfig.model_type: SmolVLAPolicy,
    OpenVLAPolicyConfig.model_type: make_openvla_policy,
}
HEAD = "alignment_head."


class RocketForActionPrediction(StrictModel):
    config_class = RocketConfig
    main_input_name = "images"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules: list[
        str
    ] = []  # those of the policy; FSDP refuses the name of a module that a model does not have
    _keep_in_fp32_modules_strict = ["alignment_head"]
    accepts_loss_kwargs = False  # transformers' Trainer would add `num_items_in_batch` to the batch

    def __init__(self, config: RocketConfig):
        super().__init__(config)
        config._attn_implementation = config._attn_implementation  # the setter hands it on to the inner configurations
        policy = config.policy_config
        self.policy: Policy = POLICIES[policy.model_type](config)
        self.new_layers: list[str] = []  # that have never been trained: see `for_robot`
        self.alignment_head: AlignmentHead | None = None
        if config.alignment is not None:
            self.alignment_head = AlignmentHead(config.alignment, policy.width, policy.depth)
        else:
            self._keys_to_ignore_on_load_unexpected = [rf"^{HEAD}"]
        self.post_init()

    def forward(
        self,
        targets: dict[int, Tensor] | None = None,
        generator: Generator | None = None,
        **batch: Unpack[Batch],
    ) -> RocketOutput:
        """The losses of a batch (see `Batch`) by name: "action/..." and, for each aligned pair of layers,
        "alignment/STUDENT-TEACHER". `targets` are the teacher's features by teacher layer, each (B, V, T, C)
        on the student's grid; a model with a head needs them to train and skips its head without them elsewhere.
        Whatever is random is drawn from the generator."""
        self.check(batch, {"actions"})
        head = self.alignment_head
        if targets is None:
            if head is not None and self.training:
                raise UserError("this model has an alignment head: pass the teacher's features as targets, or drop it")
            losses = self.policy(batch, (), generator).losses
            return RocketOutput(loss=weighted_loss(losses, 0.0), losses=losses)
        if head is None:
            raise UserError("targets were passed to a model that has no alignment head")
        self.check_targets(targets, batch)
        output = self.policy(batch, head.taps, generator)
        losses = output.losses | head(output.taps, targets, batch["camera_mask"])
        return RocketOutput(loss=weighted_loss(losses, self.config.alignment.weight), losses=losses)

    @torch.no_grad()
    def predict_action_chunk(self, generator: Generator | None = None, **batch: Unpack[Batch]) -> Tensor:
        """Normalized actions (B, chunk, action_dim). The same generator, or noise in the batch, gives the same."""
        self.check(batch, set())
        return self.policy.predict_action_chunk(batch, generator)[..., : self.config.action_dim]

    def self_test(self) -> SelfTestReport:
        """Whether this policy still gives the actions that it was published with; a ValueError says how it does not."""
        return run_self_test(self, read_self_test(own_self_test(self)))

    def check(self, batch: Batch, more: set[str]) -> None:
        config = self.config
        required = {"images", "camera_mask", "input_ids", "attention_mask"} | more
        if config.policy_config.reads_state:
            required.add("state")
        shapes = {
            "images": config.image_shape,
            "camera_mask": (len(config.cameras),),
            "state": (config.state_dim,),
            "actions": (config.chunk_size, config.action_dim),
            "action_is_pad": (config.chunk_size,),
            "time": (),
        }
        if config.policy_config.draws_noise:
            shapes["noise"] = (config.chunk_size, config.policy_config.max_action_dim)
        check_batch(batch, required, shapes)

    def check_targets(self, targets: dict[int, Tensor], batch: Batch) -> None:
        rows, columns = self.config.policy_config.image_grid
        shape = (*batch["camera_mask"].shape, rows * columns, self.config.alignment.target_width)
        for layer in self.config.alignment.teacher_layers:
            if layer not in targets:
                raise UserError(f"targets lack teacher layer {layer}; they have {', '.join(map(str, targets))}")
            if tuple(targets[layer].shape) != shape:
                raise UserError(f"targets[{layer}] must be {shape}, got {tuple(targets[layer].shape)}")

    def for_inference(self) -> "RocketForActionPrediction":
        """The policy without its alignment head, in a model of its own that shares this one's weights."""
        config = type(self.config).from_dict(self.config.to_dict(), alignment=None)
        config._attn_implementation = self.config._attn_implementation
        with torch.device("meta"):
            model = type(self)(config)
        kept = {name: value for name, value in self.state_dict().items() if not name.startswith(HEAD)}
        model.load_state_dict(kept, strict=True, assign=True)
        return model.eval()

    @torch.no_grad()
    def for_robot(
        self, robot: Mapping[str, Any] | str | Path, revision: str | None = None
    ) -> "RocketForActionPrediction":
        """This policy for another robot, in a model that shares this one's weights: by its cameras, dimensions, chunk
        and normalization (see `RocketConfig`), or by an adapter's folder or repository, whose weights then go on it.

        Layers whose sizes the robot sets are new; `model.new_layers` names them."""
        robot = robot if isinstance(robot, Mapping) else read_robot(robot, revision)
        config = config_for_robot(self.config, robot)
        config._attn_implementation = self.config._attn_implementation
        weights = self.state_dict()
        with torch.device("meta"):
            model = type(self)(config)
        model.new_layers = new_layers(model, weights)
        kept = {name: value for name, value in weights.items() if name.rpartition(".")[0] not in model.new_layers}
        model.load_state_dict(kept, strict=False, assign=True)
        for name in model.new_layers:
            layer = model.get_submodule(name).to_empty(device=self.device).to(self.dtype)
            model._init_weights(layer)
        return model.train(self.training)

    def set_attn_implementation(self, attn_implementation: str, **_: Any) -> None:
        """Between those that the policy knows. transformers' own method would miss the inner configurations."""
        known = self.policy.attention_implementations
        if attn_implementation not in known:
            raise UserError(f"attn_implementation must be one of {', '.join(known)}, got {attn_implementation!r}")
        self.config._attn_implementation = attn_implementation

    @classmethod
    def training_heads(cls) -> tuple[str, ...]:
        """A policy may be loaded into a model with a fresh head (`alignment=AlignmentConfig(...)`), and a training
        checkpoint into a policy without its head (`alignment=None`)."""
        return (HEAD,)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """By the class of a leaf: transformers passes by modules that hold no weights of their own."""
        if isinstance(module, ProjectorLinear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, Modulation):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)
            if isinstance(module, GemmaRMSNorm):
                init.zeros_(module.weight)  # Gemma multiplies by 1 + weight
            elif isinstance(module, LlamaNorm):
                init.ones_(module.weight)
            elif isinstance(module, LayerScale):
                init.constant_(module.weight, LayerScale.INITIAL)
