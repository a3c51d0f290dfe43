"""Open-loop evaluation: a policy's actions for the observations of a recorded dataset, beside the recorded actions.

At the frames 0, K, 2K, ... of an episode the policy predicts a chunk from the recorded observation. Its first K actions
are compared with the recorded actions of these frames, so that every frame of the episode counts once. Baselines (see
training/data/baselines.py) predict at the same frames.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from rocket_hf.errors import UserError
from rocket_hf.files import expand_user
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.training.data.baselines import HOLD_STILL, MEAN_ACTION, NEAREST_NEIGHBOR, ActionBaselines
from rocket_hf.training.data.batches import sample_generator
from rocket_hf.training.data.frame_table import MixtureEntry
from rocket_hf.training.data.lerobot_data import RobotDataset
from rocket_hf.training.data.mixture import split_episodes
from rocket_hf.training.recipe import DatasetConfig, VLARecipe

from .trained_policy import TrainedPolicySource

POLICY = "policy"
BASELINES = (HOLD_STILL, MEAN_ACTION, NEAREST_NEIGHBOR)
PREDICTORS = (POLICY, *BASELINES)


@dataclass(frozen=True)
class OpenLoopEpisode:
    """Recorded actions of one episode, (frames, A), and those of each predictor, in the dataset's units.

    A are the policy's action dimensions that the dataset has.
    """

    number: int
    recorded: Tensor
    predicted: dict[str, Tensor]

    def errors(self, predictor: str) -> Tensor:
        """Return the mean absolute error of each action dimension, (A,)."""
        return (self.predicted[predictor] - self.recorded).abs().mean(dim=0)


@dataclass(frozen=True)
class EpisodeSplit:
    """Episodes to evaluate, and training episodes for the baselines.

    Without `training`, the baselines of each episode use all other episodes, because the training episodes are unknown.
    """

    evaluated: list[int]
    training: list[int] | None


@dataclass(frozen=True)
class OpenLoopSettings:
    execute: int | None = None  # actions of each chunk that are compared; None: all
    batch_size: int = 8  # frames that are predicted at once
    seed: int = 0  # of the noise that flow matching starts from
    device: str = "cpu"


def dataset_config(source: TrainedPolicySource, dataset: str, cameras: dict[str, str]) -> DatasetConfig:
    """Return the dataset with the columns and cameras of the run's recipe, if the run was trained on it.

    `cameras` maps cameras of the policy to cameras of the dataset, by their short names or their keys.
    """
    recipe = source.recipe
    trained_on = recipe.data.datasets if isinstance(recipe, VLARecipe) else []
    config = next((each for each in trained_on if is_same_dataset(each.id, dataset)), DatasetConfig())
    return replace(config, id=dataset, weight=None, cameras=config.cameras | cameras)


def open_dataset(
    source: TrainedPolicySource, config: RocketConfig, dataset: str, cameras: dict[str, str]
) -> RobotDataset:
    """Open a dataset as the policy's run read it: with its columns, cameras and control rate.

    A dataset that the run did not read is opened at its own rate.
    """
    recipe = source.recipe
    is_trained_on = isinstance(recipe, VLARecipe) and any(
        is_same_dataset(each.id, dataset) for each in recipe.data.datasets
    )
    rate = recipe.data.resample if isinstance(recipe, VLARecipe) and is_trained_on else None
    return RobotDataset(dataset_config(source, dataset, cameras), config, entry=MixtureEntry(rate=rate))


def is_same_dataset(one: str, other: str) -> bool:
    """Return whether two texts name the same folder or, without their revisions, the same Hub repository."""
    paths = [expand_user(text) for text in (one, other)]
    if any(path.is_dir() for path in paths):
        return paths[0].resolve() == paths[1].resolve()
    return one.partition("@")[0] == other.partition("@")[0]


def choose_episodes(source: TrainedPolicySource, data: RobotDataset, dataset: str, count: int | None) -> EpisodeSplit:
    """Return the held-out episodes of the policy's run if it was trained on the dataset, and otherwise all episodes.

    At most `count` episodes are evaluated.
    """
    recipe = source.recipe
    if isinstance(recipe, VLARecipe) and any(is_same_dataset(each.id, dataset) for each in recipe.data.datasets):
        training, held_out = split_episodes(data.episodes, recipe.data.validation, recipe.run.seed)
        if not held_out:
            raise UserError(
                f"the run was trained on all episodes of {data.id}, so none is left to evaluate: pass --dataset with "
                "another dataset, or train with data.validation above 0"
            )
        return EpisodeSplit(held_out[:count], training)
    if len(data.episodes) < 2:
        raise UserError(f"{data.id} has one episode, but the baselines need another one: record a second episode")
    return EpisodeSplit(data.episodes[:count], None)


def check_rate(policy_rate: float | None, data: RobotDataset) -> None:
    if policy_rate is not None and policy_rate != data.fps:
        raise UserError(
            f"the policy predicts actions at {policy_rate:g} Hz, but {data.id} was recorded at {data.fps:g} Hz, so "
            "their chunks span different times: choose a dataset with the policy's rate"
        )


def evaluate_open_loop(
    policy: RocketForActionPrediction,
    processor: RocketProcessor,
    data: RobotDataset,
    split: EpisodeSplit,
    settings: OpenLoopSettings,
) -> Iterator[OpenLoopEpisode]:
    """Yield the predictions for one episode after the other."""
    chunk = policy.config.chunk_size
    execute = chunk if settings.execute is None else settings.execute
    if not 1 <= execute <= chunk:
        raise UserError(f"--execute must be 1 to {chunk}, the length of this policy's chunks, not {execute}")
    policy = policy.to(settings.device).eval()
    baselines = ActionBaselines(data, split.training) if split.training is not None else None
    for number in tqdm(split.evaluated, desc="episodes", leave=False, disable=None):
        reference = baselines or ActionBaselines(data, [other for other in data.episodes if other != number])
        frames = data.frame_range(number)
        starts = list(frames[::execute])
        predicted = {
            name: torch.cat([reference.predict(name, start, execute) for start in starts])[: len(frames)]
            for name in BASELINES
        }
        chunks = [
            predict_chunks(policy, processor, data, starts[first : first + settings.batch_size], settings.seed)
            for first in range(0, len(starts), settings.batch_size)
        ]
        predicted[POLICY] = torch.cat(chunks)[:, :execute].flatten(0, 1)[: len(frames)]
        check_finite(predicted[POLICY], data, frames)
        recorded, mask = data.actions[frames.start : frames.stop], data.action_mask
        yield OpenLoopEpisode(number, recorded[:, mask], {name: values[:, mask] for name, values in predicted.items()})


@torch.no_grad()
def predict_chunks(
    policy: RocketForActionPrediction, processor: RocketProcessor, data: RobotDataset, frames: Sequence[int], seed: int
) -> Tensor:
    """Return the policy's chunks at these frames, (frames, chunk, A) in the dataset's units."""
    images = dict(zip(data.camera_keys, data.read_images(frames), strict=True))
    present = {camera: image if data.camera_keys[camera] else None for camera, image in images.items()}
    tasks = [data.tasks[int(data.task_indices[frame])] for frame in frames]
    batch = processor(images=present, task=tasks, state=data.state[list(frames)], state_mask=data.state_mask)
    config = policy.config
    if config.policy_config.draws_noise:
        shape = (config.chunk_size, config.policy_config.max_action_dim)
        batch["noise"] = torch.stack([torch.randn(shape, generator=sample_generator(seed, frame)) for frame in frames])
    batch = {name: value.to(policy.device) for name, value in batch.items()}
    return processor.unnormalize_actions(policy.predict_action_chunk(**batch).float().cpu())


def check_finite(actions: Tensor, data: RobotDataset, frames: range) -> None:
    bad = (~actions.isfinite()).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise UserError(
            f"the policy predicts actions that are not finite for {data.id}, {data.describe_frame(frames[bad[0]])}: "
            "evaluate an earlier checkpoint"
        )
