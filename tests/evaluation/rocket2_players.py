"""Players for ViZDoom's rooms that need no training, and a ROCKET-2 policy with random weights."""

import torch

from rocket_hf.evaluation.rocket2.players import PlayerOutput
from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.sims.vizdoom.actions import FACTORS, IDLE
from rocket_hf.sims.vizdoom.bot import Bot
from rocket_hf.sims.vizdoom.maps import make_room

TINY = dict(
    image_size=(60, 80), patch_size=20, rgb_depth=1, rgb_width=32, rgb_heads=2, rgb_mlp_width=32, rgb_frozen=False,
    mask_depth=1, mask_width=16, mask_heads=2, mask_mlp_width=32, width=32, heads=2, view_tokens=2, spatial_layers=1,
    temporal_layers=1, window_steps=8, action_space="factored", action_factors=FACTORS,
)  # fmt: skip


def random_policy(**changes) -> Rocket2ForActionPrediction:
    """Return a policy whose choices depend on all its inputs and often end at an object."""
    torch.manual_seed(0)
    policy = Rocket2ForActionPrediction(Rocket2Config(**(TINY | changes)))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(0, 0.3 if parameter.dim() > 1 else 0.1)
    return policy.eval()


class BotPlayer:
    """Player that knows the map and ignores the goal images."""

    def __init__(self):
        self.bots = {}

    def act(self, inputs):
        for slot, each in inputs.items():
            if not each.reply.steps:
                self.bots[slot] = Bot(make_room(each.start.seed), each.start.target)
        return {
            slot: PlayerOutput(self.bots[slot].act(each.reply.pose, bool(each.reply.mask.any())))
            for slot, each in inputs.items()
        }


class IdlePlayer:
    """Player that never acts, and records the goals of its inputs."""

    def __init__(self):
        self.goals = []

    def act(self, inputs):
        self.goals += [(each.reply.steps, each.reply.goal) for _, each in sorted(inputs.items())]
        return dict.fromkeys(inputs, PlayerOutput(IDLE))
