"""Pretraining of the image encoder of a new ROCKET-2 policy on the objects of recorded rooms.

The published policy uses a frozen encoder that was pretrained on millions of images (DINO). There is no such encoder
that is small enough for a CPU, and a random one would have to learn the appearance of objects from the auxiliary losses
alone. Therefore the encoder is first trained to classify, patch by patch, the object that an image shows. The classes
are the tasks of the recorded episodes.
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

BACKGROUND = 0  # class of a patch without an object
HELD_OUT_SHARE = 0.1  # share of the rooms
BATCH_SIZE = 32
LEARNING_RATE, WARMUP_STEPS, MAX_GRADIENT_NORM = 3e-3, 100, 1.0
OBJECT_WEIGHT = 3.0  # loss weight of object classes, because most patches show the background
POSITION_SCALE = 1.0  # amplitude of position embeddings; smaller ones do not reach the heads
# Shares of a patch that an object (the background) must cover for the patch to count as object (background).
MIN_OBJECT_SHARE, MIN_BACKGROUND_SHARE = 0.4, 0.99


@dataclass(frozen=True)
class EncoderPretrainingReport:
    """Classes of the objects, and the classification of patches in held-out rooms."""

    names: list[str]
    training_rooms: int
    held_out_rooms: int
    object_accuracy: float  # share of the patches with an object that are classified as this object
    false_detection_rate: float  # share of the patches without any object that are classified as one


@dataclass(frozen=True)
class LabeledImages:
    """Images of some rooms with the class of each pixel: 0 for the background, or 1 + the index of an object name."""

    data: RecordedRooms
    rows: Tensor  # (n,) rows of the images in the data
    labels: Tensor  # (n, H, W) uint8

    def images(self, indices: Tensor) -> Tensor:
        """Return some of the images, (len(indices), 3, H, W) uint8."""
        return self.data.images[self.rows[indices]]

    def patch_classes(self, indices: Tensor, patch_size: int, names: int) -> Tensor:
        """Return the share of each class in each patch, (len(indices), P, 1 + names)."""
        classes = F.one_hot(self.labels[indices].long(), 1 + names).permute(0, 3, 1, 2).float()
        return F.avg_pool2d(classes, patch_size).flatten(2).transpose(1, 2)


def pretrain_encoder(
    config: Rocket2Config, data: RecordedRooms, steps: int, seed: int
) -> tuple[Rocket2ForActionPrediction, EncoderPretrainingReport]:
    """Return a new policy with a pretrained, frozen image encoder, and the encoder's accuracy in held-out rooms."""
    torch.manual_seed(seed)
    trained = Rocket2ForActionPrediction(Rocket2Config.from_dict(config.to_dict(), rgb_frozen=False))
    initialize_for_pretraining(trained)
    names, name_of_object = read_object_names(data)
    rooms, held_out = split_episodes(data.rooms, HELD_OUT_SHARE, seed)
    if not held_out:
        raise UserError("the dataset has only one room, but one is held out for evaluation: record at least two rooms")
    head = nn.Linear(config.rgb_width, 1 + len(names))
    train_encoder(trained, head, label_images(data, name_of_object, rooms), steps, seed)
    accuracy, false_detections = evaluate_encoder(trained.eval(), head, label_images(data, name_of_object, held_out))
    policy = Rocket2ForActionPrediction(Rocket2Config.from_dict(config.to_dict(), rgb_frozen=True))
    policy.load_state_dict(trained.state_dict())
    return policy.eval(), EncoderPretrainingReport(names, len(rooms), len(held_out), accuracy, false_detections)


def initialize_for_pretraining(policy: Rocket2ForActionPrediction) -> None:
    """Initialize position embeddings with sinusoids, and queries with a standard normal distribution.

    With the usual small initialization, the image content would drown out both.
    """
    rows, columns = policy.config.grid
    with torch.no_grad():
        for encoder in (policy.views.rgb, policy.views.mask):
            positions = encoder.position_embedding.weight[1:]  # the first embedding belongs to the class token
            positions.copy_(POSITION_SCALE * sinusoidal_positions(rows, columns, positions.shape[1]))
        nn.init.normal_(policy.views.queries.weight)


def sinusoidal_positions(rows: int, columns: int, width: int) -> Tensor:
    """Return sines and cosines of each patch's row and column, (P, width).

    Their periods range from twice the image's side to a quarter of it.
    """
    y, x = torch.meshgrid(torch.arange(rows) / rows, torch.arange(columns) / columns, indexing="ij")
    frequencies = torch.pi * 2 ** torch.linspace(0, 3, width // 4)
    parts = [wave(position.flatten()[:, None] * frequencies) for position in (y, x) for wave in (torch.sin, torch.cos)]
    return F.pad(torch.cat(parts, dim=1), (0, width % 4))


def read_object_names(data: RecordedRooms) -> tuple[list[str], dict[tuple[int, int], int]]:
    """Return the names of all objects, and the index of the name of each object by room and object id.

    The name of an object is the task of the demonstrations that have it as their target.
    """
    task_of_object: dict[tuple[int, int], str] = {}
    for files in data.files:
        columns = read_columns(files.id, files.data_files(), ["room", "target", "task_index"])
        rows = zip(*(columns[name].reshape(-1).tolist() for name in ("room", "target", "task_index")), strict=True)
        task_of_object |= {(room, target): files.tasks[task] for room, target, task in set(rows) if target}
    if not task_of_object:
        raise UserError(
            "no episode of the dataset is a demonstration, so that no object has a name: record demonstrations with "
            "`rocket-hf simulate vizdoom`"
        )
    names = sorted(set(task_of_object.values()))
    return names, {key: names.index(name) for key, name in task_of_object.items()}


def label_images(data: RecordedRooms, name_of_object: dict[tuple[int, int], int], rooms: list[int]) -> LabeledImages:
    classes = {room: torch.zeros(256, dtype=torch.uint8) for room in rooms}  # class of each object id
    for (room, object_id), name in name_of_object.items():
        if room in classes:
            classes[room][object_id] = 1 + name
    episodes = [episode for episode in data.episodes if episode.room in classes]
    rows = [torch.arange(episode.frames.start, episode.frames.stop) for episode in episodes]
    labels = [
        classes[episode.room][data.objects[episode_rows].long()]
        for episode, episode_rows in zip(episodes, rows, strict=True)
    ]
    return LabeledImages(data, torch.cat(rows), torch.cat(labels))


def train_encoder(
    policy: Rocket2ForActionPrediction, head: nn.Linear, images: LabeledImages, steps: int, seed: int
) -> None:
    """Train the policy's image encoder and the classification head."""
    patch_size, names = policy.config.patch_size, head.out_features - 1
    parameters = [*policy.views.rgb.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps))
    weights = torch.tensor([1.0] + [OBJECT_WEIGHT] * names)
    generator = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(steps), desc="pretraining the encoder", leave=False, disable=None):
        indices = torch.randint(len(images.rows), (BATCH_SIZE,), generator=generator)
        log_probabilities = head(policy.views.image_features(images.images(indices))).log_softmax(dim=-1)
        loss = -(images.patch_classes(indices, patch_size, names) * weights * log_probabilities).sum(dim=-1).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimizer.step()
        schedule.step()


def learning_rate_factor(step: int, steps: int) -> float:
    """Return the learning-rate multiplier at `step` (0-based): a linear warm-up, then a cosine from 1 to 0.05."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * (0.525 + 0.475 * math.cos(math.pi * step / steps))


@torch.no_grad()
def evaluate_encoder(policy: Rocket2ForActionPrediction, head: nn.Linear, images: LabeledImages) -> tuple[float, float]:
    """Return the accuracy on patches with an object, and the share of empty patches classified as an object."""
    correct, false_detections = [], []
    for indices in torch.arange(len(images.rows)).split(BATCH_SIZE):
        classes = images.patch_classes(indices, policy.config.patch_size, head.out_features - 1)
        predicted = head(policy.views.image_features(images.images(indices))).argmax(dim=-1)
        has_object = classes[..., 1:].amax(dim=-1) > MIN_OBJECT_SHARE
        correct.append((predicted == classes[..., 1:].argmax(dim=-1) + 1)[has_object])
        false_detections.append((predicted != BACKGROUND)[classes[..., BACKGROUND] > MIN_BACKGROUND_SHARE])
    return torch.cat(correct).float().mean().item(), torch.cat(false_detections).float().mean().item()
