"""ROCKET-2: a policy that acts on what is marked in a picture of any camera.

- `forward` reads chunks of episodes and returns named losses, and the memory that the next chunk goes on from.
- `step` takes one step in many environments, in constant time, and returns the action and what it remembers.
- `for_inference` drops the auxiliary heads, or keeps those that people want to see. No action depends on them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Self, Unpack

import torch
from torch import Generator, Tensor, nn
from transformers import initialization as init

from .configuration_rocket2 import Rocket2Config
from .errors import UserError
from .policy_interface import Batch  # noqa: F401  (named here so that it is shipped: see the package)
from .rocket2_actions import ActionChoice, ActionHeads, PreviousAction
from .rocket2_auxiliary import AuxiliaryHeads, auxiliary_losses
from .rocket2_interface import (
    Goal,
    Memory,
    PolicyState,
    Rocket2Batch,
    Rocket2Output,
    check_goal_batch,
    check_shape,
    weighted_rocket2_loss,
)
from .rocket2_minecraft import BUTTONS  # noqa: F401
from .rocket2_self_test import Rocket2SelfTestReport, read_rocket2_self_test, run_goal_test
from .rocket2_temporal import CURVE_SCALE, DistanceCurves, FanInLinear, TemporalTransformer
from .rocket2_views import ViewReader
from .self_test import own_self_test
from .strict_config import StrictConfig  # noqa: F401
from .strict_model import StrictModel
from .vit_block import VitBlock  # noqa: F401

AUXILIARY = "auxiliary."
ACTS_ON = {"images", "goal_images", "goal_masks", "goal_interactions", "goal_index"}


class Rocket2ForActionPrediction(StrictModel):
    config_class = Rocket2Config
    main_input_name = "images"
    supports_gradient_checkpointing = True
    _no_split_modules = ["VitBlock", "SpatialLayer", "TemporalBlock"]
    accepts_loss_kwargs = False  # transformers' Trainer would add `num_items_in_batch` to the batch

    def __init__(self, config: Rocket2Config):
        super().__init__(config)
        self.views = ViewReader(config)
        self.interaction = nn.Embedding(1 + config.interactions, config.width)  # the first one is for none
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
        """Chunks of episodes (see `Rocket2Batch`), each going on from its `memory`, or from none.

        Losses are "action/FACTOR" where the batch has actions, and "auxiliary/HEAD" where it says what is visible. The
        generator draws which previous actions training hides.
        """
        self.check(batch)
        images = batch["images"]
        size, steps = images.shape[:2]
        agent = self.views.agent_tokens(images.flatten(0, 1))
        goals = self.views.goal_tokens(batch["goal_images"].flatten(0, 1), batch["goal_masks"].flatten(0, 1))
        rows, index = torch.arange(size, device=images.device)[:, None], batch["goal_index"]
        tokens = self.step_tokens(
            agent,
            goals.unflatten(0, (size, -1))[rows, index].flatten(0, 1),
            batch["goal_interactions"][rows, index].flatten(),
            step_by_step(batch.get("previous_actions")),
            generator,
            step_by_step(batch.get("previous_hidden")),
        )
        memory = memory if memory is not None else self.temporal.empty_memory(size, full=False)
        hidden, memory = self.temporal(tokens.unflatten(0, (size, steps)).flatten(1, 2), memory)
        logits, said = self.read(hidden.unflatten(1, (steps, -1)))
        losses = self.losses(logits, said, batch)
        return Rocket2Output(weighted_rocket2_loss(losses), losses, memory, logits, said)

    def losses(self, logits: dict[str, Tensor], said: dict[str, Tensor], batch: Rocket2Batch) -> dict[str, Tensor]:
        is_pad = batch.get("is_pad", torch.zeros_like(batch["goal_index"], dtype=torch.bool))
        losses: dict[str, Tensor] = {}
        if "actions" in batch:
            losses |= self.action_heads.losses(logits, batch["actions"], ~is_pad)
        if "visibility" in batch:
            losses |= auxiliary_losses(said, batch, is_pad)  # type: ignore[arg-type]
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
        """What N steps, each with its views (N, P, D), hand to the temporal transformer: (N, tokens of a step, D)."""
        tokens = [self.views(agent, goal), self.interaction(interactions + 1)[:, None]]
        if self.previous_action is not None:
            tokens.append(self.previous_action(previous, generator, hidden)[:, None])
        return torch.cat(tokens, dim=1)

    def read(self, hidden: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The heads on steps (B, T, tokens of a step, D): the last token acts, the last view token tells the rest."""
        return self.action_heads(hidden[:, :, -1]), self.auxiliary(hidden[:, :, self.config.view_tokens - 1])

    @torch.no_grad()
    def initial_state(self, environments: int = 1, guidance: float = 0.0) -> PolicyState:
        """Before the first step, without a goal. With `guidance` k the scores of actions are (1 + k) times those with
        the goal minus k times those of a second memory that never has one; ROCKET-2 used 1.5."""
        if guidance < 0:
            raise UserError(f"guidance is 0 for none, or positive: got {guidance}")
        blank = self.no_goal(1)
        no_goal = self.views.goal_tokens(blank.images, blank.masks)
        return PolicyState(
            memory=self.temporal.empty_memory(environments * (2 if guidance else 1), full=True),
            goals=no_goal.repeat(environments, 1, 1),
            no_goal=no_goal,
            interactions=blank.interactions.repeat(environments),
            previous_actions=torch.tensor([list(self.config.rest_action)] * environments, device=self.device),
            guidance=guidance,
        )

    def no_goal(self, count: int, environments: Tensor | None = None) -> Goal:
        """The goal that clears goals: nothing in the picture, nothing marked, nothing to do."""
        height, width = self.config.image_size
        images = torch.zeros(count, 3, height, width, dtype=torch.uint8, device=self.device)
        masks = torch.zeros(count, height, width, dtype=torch.bool, device=self.device)
        return Goal(images, masks, torch.full((count,), -1, device=self.device), environments)

    def reset(self, state: PolicyState, environments: Tensor) -> PolicyState:
        """The state in which some environments, (B,) bool, start an episode anew, without a goal."""
        new, everyone = environments.nonzero().flatten(), environments
        if state.guidance:
            everyone = environments.repeat(2)
        rest = torch.tensor(list(self.config.rest_action), device=new.device)
        return replace(
            state,
            memory=state.memory.without(everyone),
            goals=state.goals.index_copy(0, new, state.no_goal.expand(len(new), -1, -1)),
            interactions=state.interactions.masked_fill(environments, -1),
            previous_actions=torch.where(environments[:, None], rest, state.previous_actions),
        )

    @torch.no_grad()
    def with_goal(self, state: PolicyState, goal: Goal) -> PolicyState:
        """The state in which all environments, or those of the goal, are after something else."""
        chosen = goal.environments
        chosen = chosen if chosen is not None else torch.ones_like(state.interactions, dtype=torch.bool)
        which = chosen.nonzero().flatten()
        check_shape("goal.images", goal.images, (len(which), 3, *self.config.image_size))
        check_shape("goal.masks", goal.masks, (len(which), *self.config.image_size))
        check_shape("goal.interactions", goal.interactions, (len(which),))
        kinds = self.config.interactions
        if not ((goal.interactions >= -1) & (goal.interactions < kinds)).all():
            raise UserError(f"goal.interactions must lie in -1..{kinds - 1}, got {goal.interactions.tolist()}")
        tokens = self.views.goal_tokens(goal.images, goal.masks)
        goals = state.goals.index_copy(0, which, tokens)
        return replace(state, goals=goals, interactions=state.interactions.index_copy(0, which, goal.interactions))

    @torch.no_grad()
    def step(
        self,
        images: Tensor,
        goal: Goal | None,
        state: PolicyState,
        *,
        temperature: float = 1.0,
        generator: Generator | Sequence[Generator] | None = None,
    ) -> tuple[Tensor, PolicyState]:
        """What to do now, choices (B, factors), and the state for the next step, which has in `seen` what the
        auxiliary heads say. A goal lasts until another one, or `no_goal`, takes its place: None changes nothing.

        With a generator for each environment, what one of them does is not changed by those beside it. An environment
        that did something else than it was told puts that into the state as `previous_actions`.
        """
        scores, state = self.look(images, goal, state)
        action = self.action_heads.sample(scores, temperature, generator)
        return action, replace(state, previous_actions=action)

    @torch.no_grad()
    def look(self, images: Tensor, goal: Goal | None, state: PolicyState) -> tuple[dict[str, Tensor], PolicyState]:
        """A step without its action: the scores of each factor's choices, (B, choices), and what is remembered."""
        count = len(state.interactions)
        check_shape("images", images, (count, 3, *self.config.image_size))
        state = self.with_goal(state, goal) if goal is not None else state
        hidden, memory = self.temporal(self.tokens_of(images, state), state.memory)
        logits, said = self.read(hidden[:, None])
        scores = {name: guided(value[:, 0], state.guidance) for name, value in logits.items()}
        seen = AuxiliaryHeads.seen({name: value[:count, 0] for name, value in said.items()})
        return scores, replace(state, memory=memory, seen=seen)

    def tokens_of(self, images: Tensor, state: PolicyState) -> Tensor:
        """One step's tokens; with guidance those of all environments twice, the second time without their goals."""
        agent, goals = self.views.agent_tokens(images), state.goals
        interactions, previous = state.interactions, state.previous_actions
        if state.guidance:
            agent, previous = agent.repeat(2, 1, 1), previous.repeat(2, 1)
            goals = torch.cat([goals, state.no_goal.expand_as(goals)])
            interactions = torch.cat([interactions, torch.full_like(interactions, -1)])
        return self.step_tokens(agent, goals, interactions, previous, None)

    def self_test(self) -> Rocket2SelfTestReport:
        """Whether this policy still does what it did where it was published; a ValueError says how it does not."""
        return run_goal_test(self, read_rocket2_self_test(own_self_test(self)))

    def check(self, batch: Rocket2Batch) -> None:
        c, required = self.config, set(ACTS_ON)
        if c.reads_previous_action:
            required.add("previous_actions")
        if self.training and c.auxiliary_heads:
            required |= {"visibility", *c.auxiliary_heads}
        chunk = tuple(batch["images"].shape[:2]) if "images" in batch else (None, None)
        goals = (chunk[0], batch["goal_images"].shape[1] if "goal_images" in batch else None)
        shapes: dict[str, tuple[int | None, ...]] = {
            "images": (*chunk, 3, *c.image_size),
            "goal_images": (*goals, 3, *c.image_size),
            "goal_masks": (*goals, *c.image_size),
            "goal_interactions": goals,
            "previous_actions": (*chunk, len(c.factors)),
            "actions": (*chunk, len(c.factors)),
            "point": (*chunk, 2),
            "box": (*chunk, 4),
        }
        shapes |= dict.fromkeys(("goal_index", "is_pad", "visibility", "previous_hidden"), chunk)
        check_goal_batch(batch, required, shapes)

    def for_inference(self, keep: Iterable[str] = ()) -> "Rocket2ForActionPrediction":
        """The policy without its auxiliary heads, or with those to `keep` ("visibility", "point", "box"), in a model of
        its own that shares this one's weights."""
        keep = list(keep)
        if missing := sorted(set(keep) - set(self.config.auxiliary_heads)):
            raise UserError(f"this policy has no head {missing[0]!r} to keep; it has {self.config.auxiliary_heads}")
        config = type(self.config).from_dict(self.config.to_dict(), auxiliary_heads=keep)
        with torch.device("meta"):
            model = type(self)(config)
        wanted, weights = model.state_dict().keys(), self.state_dict()
        kept = {name: value for name, value in weights.items() if name in wanted or not name.startswith(AUXILIARY)}
        model.load_state_dict(kept, strict=True, assign=True)
        return model.eval()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self:
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.views.freeze()  # transformers loads weights as if all were to be trained
        return loaded

    @classmethod
    def training_heads(cls) -> tuple[str, ...]:
        return tuple(f"{AUXILIARY}{name}." for name in ("visibility", "point", "box"))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As torch and the published code start; transformers' own would be too small for narrow models."""
        if isinstance(module, FanInLinear):
            init.copy_(module.weight, module.fresh_weight())
        elif isinstance(module, ActionChoice):
            init.orthogonal_(module.weight, gain=ActionChoice.GAIN)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=5**0.5)
        elif isinstance(module, DistanceCurves):
            init.normal_(module.weight, std=CURVE_SCALE)
            return
        else:
            super()._init_weights(module)
            return
        if module.bias is not None:
            init.zeros_(module.bias)


def step_by_step(values: Tensor | None) -> Tensor | None:
    """(B, T, ...) to (B x T, ...)."""
    return values.flatten(0, 1) if values is not None else None


def guided(scores: Tensor, guidance: float) -> Tensor:
    """With guidance, (2 B, choices) to (B, choices): away from what would be done without a goal."""
    if not guidance:
        return scores
    aimed, aimless = scores.chunk(2)
    return (1 + guidance) * aimed - guidance * aimless
