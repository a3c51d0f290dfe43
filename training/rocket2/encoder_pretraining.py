"""Teaches the picture encoder of a new ROCKET-2 policy to see, before it learns to act.

The published policy stands on an encoder that was pretrained on millions of pictures (DINO) and stays frozen. One that
is small enough for a CPU has no such past: drawn at random, it would have to learn what things look like from whether
goals are in sight. So it is told first, patch by patch, which object it looks at: by the names that the tasks of the
recorded episodes give them.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction

from ..data.lerobot_files import read_columns
from ..data.mixture import split_episodes
from .dataset import RecordedRooms

NOTHING = 0  # the name of a patch without an object
HELD_OUT = 0.1  # of the rooms
BATCH = 32  # pictures of a step
LEARNING_RATE, WARMUP, CLIP = 3e-3, 100, 1.0
OBJECT_WEIGHT = 3.0  # of a patch's share that is an object, since most are not
POSITIONS = 1.0  # the size of the waves that tell a patch its place: smaller ones are lost on the way to the heads
COVERED, CLEAR = 0.4, 0.99  # shares of a patch that is an object's, or nobody's, in the report


@dataclass(frozen=True)
class EncoderPretrainingReport:
    names: list[str]
    rooms: int
    held_out: int  # rooms
    recognized: float  # share of the patches of held-out rooms that an object covers which are called by its name
    imagined: float  # share of those without any object in which one is seen


@dataclass(frozen=True)
class NamedPictures:
    """Pictures of some rooms, and what the objects in them are called: 0, or 1 + the number of a name."""

    data: RecordedRooms
    rows: Tensor  # (n,), where they are in the data
    named: Tensor  # (n, H, W) uint8

    def images(self, rows: Tensor) -> Tensor:
        """Some of them, (rows, 3, H, W) uint8."""
        return self.data.images[self.rows[rows]]

    def shares(self, rows: Tensor, patch: int, names: int) -> Tensor:
        """How much of each patch is what: (rows, P, 1 + names)."""
        what = F.one_hot(self.named[rows].long(), 1 + names).permute(0, 3, 1, 2).float()
        return F.avg_pool2d(what, patch).flatten(2).transpose(1, 2)


def create_encoder_pretraining(
    config: Rocket2Config, data: RecordedRooms, steps: int, seed: int
) -> tuple[Rocket2ForActionPrediction, EncoderPretrainingReport]:
    """A new policy whose picture encoder knows the objects, and how well it knows them in rooms that it did not see."""
    torch.manual_seed(seed)
    learning = Rocket2ForActionPrediction(Rocket2Config.from_dict(config.to_dict(), rgb_frozen=False))
    prepare(learning)
    names, called = names_of_objects(data)
    rooms, others = split_episodes(data.rooms, HELD_OUT, seed)
    head = nn.Linear(config.rgb_width, 1 + len(names))
    train(learning, head, pictures_of(data, called, rooms), steps, seed)
    recognized, imagined = judge(learning.eval(), head, pictures_of(data, called, others))
    policy = Rocket2ForActionPrediction(Rocket2Config.from_dict(config.to_dict(), rgb_frozen=True))
    policy.load_state_dict(learning.state_dict())
    return policy.eval(), EncoderPretrainingReport(names, len(rooms), len(others), recognized, imagined)


def prepare(policy: Rocket2ForActionPrediction) -> None:
    """Places that can be told from the start, and queries that differ: drawn as small as usual, both are drowned by
    what is in the picture."""
    rows, columns = policy.config.grid
    with torch.no_grad():
        for encoder in (policy.views.rgb, policy.views.mask):
            places = encoder.position_embedding.weight[1:]  # the first is the class token's
            places.copy_(POSITIONS * waves(rows, columns, places.shape[1]))
        nn.init.normal_(policy.views.queries.weight)


def waves(rows: int, columns: int, width: int) -> Tensor:
    """Sines and cosines of the height and of the place from left to right, from half a period to four: (P, width)."""
    y, x = torch.meshgrid(torch.arange(rows) / rows, torch.arange(columns) / columns, indexing="ij")
    frequencies = torch.pi * 2 ** torch.linspace(0, 3, width // 4)
    parts = [wave(place.flatten()[:, None] * frequencies) for place in (y, x) for wave in (torch.sin, torch.cos)]
    return F.pad(torch.cat(parts, dim=1), (0, width % 4))


def names_of_objects(data: RecordedRooms) -> tuple[list[str], dict[tuple[int, int], int]]:
    """The tasks that are after an object, and which of them each object of a room is, by room and its number."""
    called: dict[tuple[int, int], str] = {}
    for files in data.sets:
        columns = read_columns(files.id, files.data_files(), ["room", "target", "task_index"])
        rows = zip(*(columns[name].reshape(-1).tolist() for name in ("room", "target", "task_index")), strict=True)
        called |= {(room, target): files.tasks[task] for room, target, task in set(rows) if target}
    if not called:
        raise UserError("no episode of the dataset is after an object, so none of them has a name: record some")
    names = sorted(set(called.values()))
    return names, {key: names.index(name) for key, name in called.items()}


def pictures_of(data: RecordedRooms, called: dict[tuple[int, int], int], rooms: list[int]) -> NamedPictures:
    names = {room: torch.zeros(256, dtype=torch.uint8) for room in rooms}  # by the numbers that the pictures hold
    for (room, number), name in called.items():
        if room in names:
            names[room][number] = 1 + name
    chosen = [episode for episode in data.episodes if episode.room in names]
    rows = [torch.arange(episode.frames.start, episode.frames.stop) for episode in chosen]
    named = [names[episode.room][data.objects[part].long()] for episode, part in zip(chosen, rows, strict=True)]
    return NamedPictures(data, torch.cat(rows), torch.cat(named))


def train(policy: Rocket2ForActionPrediction, head: nn.Linear, pictures: NamedPictures, steps: int, seed: int) -> None:
    patch, names = policy.config.patch_size, head.out_features - 1
    parameters = [*policy.views.rgb.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    weight = torch.tensor([1.0] + [OBJECT_WEIGHT] * names)
    draw = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(steps), desc="eyes", leave=False, disable=None):
        rows = torch.randint(len(pictures.rows), (BATCH,), generator=draw)
        scores = head(policy.views.picture_features(pictures.images(rows)))
        loss = -(pictures.shares(rows, patch, names) * weight * scores.log_softmax(dim=-1)).sum(dim=-1).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        schedule.step()


def rate(step: int, steps: int) -> float:
    """Warm-up, then a cosine to nearly nothing."""
    return min(1.0, (step + 1) / WARMUP) * (0.525 + 0.475 * math.cos(math.pi * step / steps))


@torch.no_grad()
def judge(policy: Rocket2ForActionPrediction, head: nn.Linear, pictures: NamedPictures) -> tuple[float, float]:
    """Shares of patches: of those that an object covers, which are called by its name; of empty ones, which are seen as
    something."""
    right, wrong = [], []
    for rows in torch.arange(len(pictures.rows)).split(BATCH):
        shares = pictures.shares(rows, policy.config.patch_size, head.out_features - 1)
        said = head(policy.views.picture_features(pictures.images(rows))).argmax(dim=-1)
        covered = shares[..., 1:].amax(dim=-1) > COVERED
        right.append((said == shares[..., 1:].argmax(dim=-1) + 1)[covered])
        wrong.append((said != NOTHING)[shares[..., NOTHING] > CLEAR])
    return torch.cat(right).float().mean().item(), torch.cat(wrong).float().mean().item()
