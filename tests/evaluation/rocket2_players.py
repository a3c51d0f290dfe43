"""Players for ViZDoom's rooms that need no training, and a ROCKET-2 policy of random weights."""

import torch

from rocket_hf.evaluation.rocket2.players import PlayerOutput
from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.sims.vizdoom.actions import FACTORS, REST
from rocket_hf.sims.vizdoom.bot import Bot
from rocket_hf.sims.vizdoom.maps import make_room

TINY = dict(
    image_size=(60, 80), patch_size=20, rgb_depth=1, rgb_width=32, rgb_heads=2, rgb_mlp_width=32, rgb_frozen=False,
    mask_depth=1, mask_width=16, mask_heads=2, mask_mlp_width=32, width=32, heads=2, view_tokens=2, spatial_layers=1,
    temporal_layers=1, window_steps=8, action_space="factored", action_factors=FACTORS,
)  # fmt: skip


def random_policy(**changes) -> Rocket2ForActionPrediction:
    """Its choices hang on all that it reads, and often walk it into something."""
    torch.manual_seed(0)
    policy = Rocket2ForActionPrediction(Rocket2Config(**(TINY | changes)))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(0, 0.3 if parameter.dim() > 1 else 0.1)
    return policy.eval()


class BotPlayer:
    """Sees through walls; the goal's pictures are nothing to it."""

    def __init__(self):
        self.bots = {}

    def act(self, views):
        for place, view in views.items():
            if not view.moment.steps:
                self.bots[place] = Bot(make_room(view.start.seed), view.start.target)
        return {
            place: PlayerOutput(self.bots[place].act(view.moment.pose, bool(view.moment.mask.any())))
            for place, view in views.items()
        }


class Idle:
    """Does nothing, and notes what it is shown."""

    def __init__(self):
        self.shown = []

    def act(self, views):
        self.shown += [(view.moment.steps, view.moment.goal) for _, view in sorted(views.items())]
        return dict.fromkeys(views, PlayerOutput(REST))
