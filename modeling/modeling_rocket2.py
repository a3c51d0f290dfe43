"""ROCKET-2 policy: acts on a goal object that a mask marks in an image from any camera.

- `forward` processes chunks of episodes and returns losses and the memory for the next chunk.
- `step` processes one step of many environments in constant time and returns actions and the next state.
- `for_inference` drops the auxiliary heads, or keeps some as information for users. No action depends on them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Self, Unpack

import torch
from torch import Generator, Tensor, nn

from .configuration_rocket2 import Rocket2Config
from .errors import UserError
from .finite_checks import PREDICTED, finite_flags, raise_if_not_finite
from .policy_interface import Batch  # noqa: F401  (imported so that the file is published: see __init__.py)
from .rocket2_actions import ActionHeads, PreviousAction
from .rocket2_auxiliary import AuxiliaryHeads, auxiliary_losses
from .rocket2_checks import check_goal, check_rocket2_batch, check_shape
from .rocket2_initialization import initialize_module
from .rocket2_interface import Goal, Memory, Rocket2Batch, Rocket2Output, Rocket2State, weighted_rocket2_loss
from .rocket2_minecraft import BUTTONS  # noqa: F401
from .rocket2_self_test import Rocket2SelfTestReport, read_rocket2_self_test, run_rocket2_self_test
from .rocket2_temporal import TemporalTransformer
from .rocket2_views import ViewEncoder
from .self_test import self_test_path
from .size_limits import MAX_SIZES  # noqa: F401
from .stored_weights import Shapes  # noqa: F401
from .strict_config import StrictConfig  # noqa: F401
from .strict_model import StrictModel
from .vit_block import VitBlock  # noqa: F401

AUXILIARY_PREFIX = "auxiliary."  # of the names of the auxiliary heads' weights


class Rocket2ForActionPrediction(StrictModel):
    """ROCKET-2 policy (arXiv 2503.02505), which acts on a goal object marked by a mask in an image from any camera.

    `forward` is for training, on chunks of episodes; `initial_state` and `step` are for acting in environments.
    transformers' `Trainer` can train the model, with `remove_unused_columns=False` because the inputs are keyword
    arguments.

    Args:
        config: Sizes, action space and auxiliary heads.

    Example:
        ```python
        import torch

        from rocket_hf import Rocket2Config, Rocket2ForActionPrediction

        config = Rocket2Config(
            image_size=(32, 48), rgb_depth=1, mask_depth=1, width=64, heads=2, spatial_layers=1, temporal_layers=1,
            action_space="factored", action_factors={"forward": 2, "turn": 3},
        )
        policy = Rocket2ForActionPrediction(config)
        output = policy.train()(**config.fake_batch(batch_size=2, steps=4))
        output.loss.backward()

        policy = policy.for_inference()
        state = policy.initial_state(environments=2)
        goal = policy.no_goal(2)  # or Goal(images, masks, interactions)
        for _ in range(3):
            images = torch.zeros(2, 3, 32, 48, dtype=torch.uint8)  # of the agents' cameras
            actions, state = policy.step(images, goal, state)
            goal = None  # keep the goal
        print(actions.shape)  # (2, 2): environments, factors
        ```
    """

    config_class = Rocket2Config
    main_input_name = "images"
    supports_gradient_checkpointing = True
    _no_split_modules = ["VitBlock", "SpatialLayer", "TemporalBlock"]

    def __init__(self, config: Rocket2Config):
        super().__init__(config)
        self.views = ViewEncoder(config)
        self.interaction = nn.Embedding(1 + config.interactions, config.width)  # index 0 for no interaction
        self.previous_action = PreviousAction(config) if config.reads_previous_action else None
        self.temporal = TemporalTransformer(config.width, config.heads, config.temporal_layers, config.window)
        self.action_heads = ActionHeads(config)
        self.auxiliary = AuxiliaryHeads(config.width, config.auxiliary_heads)
        dropped = [head for head in self.training_heads() if head.split(".")[1] not in config.auxiliary_heads]
        self._keys_to_ignore_on_load_unexpected = [rf"^{head}" for head in dropped]
        self.post_init()

    def forward(
        self, memory: Memory | None = None, generator: Generator | None = None, **batch: Unpack[Rocket2Batch]
    ) -> Rocket2Output:
        """Compute losses and outputs of chunks of episodes.

        Args:
            memory: Memory after the previous chunk of the same episodes; None for the first chunk.
            generator: Source of the random numbers that decide which previous actions are hidden in training.
            **batch: Inputs and targets (see `Rocket2Batch`).

        Returns:
            `Rocket2Output`. Its `losses` are "action/FACTOR" if the batch has actions, and "auxiliary/HEAD" if it has
            "visibility"; `loss` is their weighted sum, `memory` that for the next chunk.
        """
        check_rocket2_batch(self.config, batch, self.training)
        images = batch["images"]
        size, steps = images.shape[:2]
        agent = self.views.agent_tokens(images.flatten(0, 1))
        goals = self.views.goal_tokens(batch["goal_images"].flatten(0, 1), batch["goal_masks"].flatten(0, 1))
        rows, index = torch.arange(size, device=images.device)[:, None], batch["goal_index"]
        tokens = self.step_tokens(
            agent,
            goals.unflatten(0, (size, -1))[rows, index].flatten(0, 1),
            batch["goal_interactions"][rows, index].flatten(),
            flatten_steps(batch.get("previous_actions")),
            generator,
            flatten_steps(batch.get("previous_hidden")),
        )
        memory = memory if memory is not None else self.temporal.empty_memory(size, full=False)
        hidden, memory = self.temporal(tokens.unflatten(0, (size, steps)).flatten(1, 2), memory)
        logits, auxiliary = self.apply_heads(hidden.unflatten(1, (steps, -1)))
        losses = self.losses(logits, auxiliary, batch)
        return Rocket2Output(weighted_rocket2_loss(losses), losses, memory, logits, auxiliary)

    def losses(self, logits: dict[str, Tensor], auxiliary: dict[str, Tensor], batch: Rocket2Batch) -> dict[str, Tensor]:
        """Return the losses of the heads for which the batch has targets."""
        is_pad = batch.get("is_pad", torch.zeros_like(batch["goal_index"], dtype=torch.bool))
        losses: dict[str, Tensor] = {}
        if "actions" in batch:
            losses |= self.action_heads.losses(logits, batch["actions"], ~is_pad)
        if "visibility" in batch:
            losses |= auxiliary_losses(auxiliary, batch, is_pad)  # type: ignore[arg-type]
        return losses

    def step_tokens(
        self,
        agent: Tensor,
        goal: Tensor,
        interactions: Tensor,
        previous: Tensor | None,
        generator: Generator | None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Return the temporal transformer's tokens of N steps, (N, tokens per step, D).

        Args:
            agent: Encoded agent's views, (N, P, D).
            goal: Encoded goal's views, (N, P, D).
            interactions: (N,), -1 for none.
            previous: Previous actions, (N, factors), or None if the policy does not read them.
            generator: Source of the random numbers that decide which previous actions are hidden.
            hidden: (N,) bool, the previous actions to hide; drawn from the generator if None.
        """
        tokens = [self.views(agent, goal), self.interaction(interactions + 1)[:, None]]
        if self.previous_action is not None:
            tokens.append(self.previous_action(previous, generator, hidden)[:, None])
        return torch.cat(tokens, dim=1)

    def apply_heads(self, hidden: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return scores and auxiliary outputs of steps (B, T, tokens per step, D).

        The action heads read the last token of a step, the auxiliary heads its last view token.
        """
        return self.action_heads(hidden[:, :, -1]), self.auxiliary(hidden[:, :, self.config.view_tokens - 1])

    @torch.no_grad()
    def initial_state(self, environments: int = 1, guidance: float = 0.0) -> Rocket2State:
        """Return the state before the first step, without a goal.

        Args:
            environments: Number of environments.
            guidance: Strength k of classifier-free guidance, 0 for none. Scores are then (1 + k) times those with the
                goal minus k times those of a second memory without goals. The publication uses 1.5.
        """
        if guidance < 0:
            raise UserError(f"guidance must be 0 (none) or positive, got {guidance}")
        blank = self.no_goal(1)
        no_goal = self.views.goal_tokens(blank.images, blank.masks)
        return Rocket2State(
            memory=self.temporal.empty_memory(environments * (2 if guidance else 1), full=True),
            goals=no_goal.repeat(environments, 1, 1),
            no_goal=no_goal,
            interactions=blank.interactions.repeat(environments),
            previous_actions=torch.tensor([list(self.config.rest_action)] * environments, device=self.device),
            guidance=guidance,
        )

    def no_goal(self, count: int, environments: Tensor | None = None) -> Goal:
        """Return the goal that removes goals: a black image, an empty mask and no interaction.

        Args:
            count: Number of environments that get it.
            environments: (B,) bool, these environments; None for all.
        """
        height, width = self.config.image_size
        images = torch.zeros(count, 3, height, width, dtype=torch.uint8, device=self.device)
        masks = torch.zeros(count, height, width, dtype=torch.bool, device=self.device)
        return Goal(images, masks, torch.full((count,), -1, device=self.device), environments)

    def reset(self, state: Rocket2State, environments: Tensor) -> Rocket2State:
        """Return the state in which some environments, (B,) bool, start a new episode without a goal."""
        indices, memories = environments.nonzero().flatten(), environments
        if state.guidance:
            memories = environments.repeat(2)
        rest = torch.tensor(list(self.config.rest_action), device=indices.device)
        return replace(
            state,
            memory=state.memory.clear(memories),
            goals=state.goals.index_copy(0, indices, state.no_goal.expand(len(indices), -1, -1)),
            interactions=state.interactions.masked_fill(environments, -1),
            previous_actions=torch.where(environments[:, None], rest, state.previous_actions),
        )

    @torch.no_grad()
    def with_goal(self, state: Rocket2State, goal: Goal) -> Rocket2State:
        """Return the state with a new goal in all environments, or in those that the goal names."""
        selected = goal.environments
        selected = selected if selected is not None else torch.ones_like(state.interactions, dtype=torch.bool)
        indices = selected.nonzero().flatten()
        check_goal(self.config, goal, len(indices))
        tokens = self.views.goal_tokens(goal.images, goal.masks)
        goals = state.goals.index_copy(0, indices, tokens)
        return replace(state, goals=goals, interactions=state.interactions.index_copy(0, indices, goal.interactions))

    @torch.no_grad()
    def step(
        self,
        images: Tensor,
        goal: Goal | None,
        state: Rocket2State,
        *,
        temperature: float = 1.0,
        generator: Generator | Sequence[Generator] | None = None,
    ) -> tuple[Tensor, Rocket2State]:
        """Choose the actions of one step.

        Args:
            images: Images of the agents' cameras, (B, 3, H, W) uint8, or float in [0, 1].
            goal: New goal, or None to keep the goals. A goal lasts until another one, or `no_goal`, replaces it.
            state: State after the previous step, or `initial_state`. Where an environment executed another action than
                the returned one, set `previous_actions` to that action before the next step.
            temperature: Temperature of sampling; 0 takes the most likely choices.
            generator: Source of the random numbers, or one generator for each environment, which makes the actions of
                an environment independent of the others.

        Returns:
            Actions (B, factors), one choice of each factor, and the state for the next step. `state.seen` holds the
            predictions of the auxiliary heads.
        """
        scores, state = self.score_actions(images, goal, state)
        action = self.action_heads.sample(scores, temperature, generator)
        return action, replace(state, previous_actions=action)

    @torch.no_grad()
    def score_actions(
        self, images: Tensor, goal: Goal | None, state: Rocket2State
    ) -> tuple[dict[str, Tensor], Rocket2State]:
        """Process one step without choosing an action.

        Returns:
            Scores (B, choices) of each factor, and the state after the step, still with the old `previous_actions`.
        """
        count = len(state.interactions)
        check_shape("images", images, (count, 3, *self.config.image_size))
        flags = finite_flags({"images": images} | ({"goal.images": goal.images} if goal is not None else {}))
        state = self.with_goal(state, goal) if goal is not None else state
        hidden, memory = self.temporal(self.environment_tokens(images, state), state.memory)
        logits, auxiliary = self.apply_heads(hidden[:, None])
        scores = {name: apply_guidance(value[:, 0], state.guidance) for name, value in logits.items()}
        raise_if_not_finite(flags | finite_flags({PREDICTED: torch.cat(list(scores.values()), dim=1)}))
        seen = AuxiliaryHeads.to_predictions({name: value[:count, 0] for name, value in auxiliary.items()})
        return scores, replace(state, memory=memory, seen=seen)

    def environment_tokens(self, images: Tensor, state: Rocket2State) -> Tensor:
        """Return the tokens of one step of B environments; with guidance 2 B, the second half without goals."""
        agent, goals = self.views.agent_tokens(images), state.goals
        interactions, previous = state.interactions, state.previous_actions
        if state.guidance:
            agent, previous = agent.repeat(2, 1, 1), previous.repeat(2, 1)
            goals = torch.cat([goals, state.no_goal.expand_as(goals)])
            interactions = torch.cat([interactions, torch.full_like(interactions, -1)])
        return self.step_tokens(agent, goals, interactions, previous, None)

    def self_test(self) -> Rocket2SelfTestReport:
        """Check that this published policy gives the outputs that it gave when it was published.

        The file self_test.safetensors, from where the weights were loaded, holds inputs and outputs.

        Returns:
            The measured differences. `UserError` describes the first one that exceeds its tolerance.
        """
        return run_rocket2_self_test(self, read_rocket2_self_test(self_test_path(self)))

    def for_inference(self, keep: Iterable[str] = ()) -> "Rocket2ForActionPrediction":
        """Return a new model in eval mode without auxiliary heads; it shares the weights of this one.

        Args:
            keep: Auxiliary heads to keep: "visibility", "point" or "box".
        """
        keep = list(keep)
        if missing := sorted(set(keep) - set(self.config.auxiliary_heads)):
            heads = ", ".join(self.config.auxiliary_heads) or "none"
            raise UserError(f"this policy has no auxiliary head {missing[0]!r} to keep; it has: {heads}")
        config = type(self.config).from_dict(self.config.to_dict(), auxiliary_heads=keep)
        with torch.device("meta"):
            model = type(self)(config)
        expected, weights = model.state_dict().keys(), self.state_dict()
        kept = {
            name: value for name, value in weights.items() if name in expected or not name.startswith(AUXILIARY_PREFIX)
        }
        model.load_state_dict(kept, strict=True, assign=True)
        return model.eval()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self:
        """Load a policy (see `StrictModel.from_pretrained`) and freeze its image encoder if the configuration does."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.views.freeze()  # transformers makes all loaded weights trainable
        return loaded

    @classmethod
    def training_heads(cls) -> tuple[str, ...]:
        """Return the weight-name prefixes of the auxiliary heads."""
        return tuple(f"{AUXILIARY_PREFIX}{name}." for name in ("visibility", "point", "box"))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if not initialize_module(module):
            super()._init_weights(module)


def flatten_steps(values: Tensor | None) -> Tensor | None:
    """Reshape (B, T, ...) to (B x T, ...)."""
    return values.flatten(0, 1) if values is not None else None


def apply_guidance(scores: Tensor, guidance: float) -> Tensor:
    """Combine scores with and without goals, (2 B, choices), to guided scores (B, choices)."""
    if not guidance:
        return scores
    with_goal, without_goal = scores.chunk(2)
    return (1 + guidance) * with_goal - guidance * without_goal
