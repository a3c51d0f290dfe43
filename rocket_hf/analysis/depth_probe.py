"""Depth probe: how well metric depth can be predicted from the features of a frozen model's layers.

A small head per layer predicts the depth of each image patch. It is trained on some episodes; validation episodes
select its regularization and the best layer; errors are reported on held-out episodes. A fixed camera sees similar
depths at the same patch in every frame, so errors are meaningful only in comparison with `constant_errors`, which use
the patch position alone.

Shapes: N frames, V cameras, T patches of a camera, K cells of a patch, C channels, L layers, E episodes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rocket_hf.errors import UserError
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.teachers.frozen import FrozenTeacher
from rocket_hf.teachers.registration import Window, register_features
from rocket_hf.teachers.scene import scene_images
from rocket_hf.teachers.teacher import Grid

from .depth_heads import MlpHeads, ProbeBatch, RidgeHeads
from .depth_samples import TEST, TRAIN, VALIDATION, DepthSamples, log_depth_of_patches

DEPTH_BATCH = 16  # frames whose depth is resized at a time
ONE_CONSTANT, CONSTANT_PER_PATCH = "one constant", "constant per patch"
CLOSE = 1.25  # threshold of the metric delta: the share of patches whose depth is wrong by less than this factor
HEADS: dict[str, type[RidgeHeads] | type[MlpHeads]] = {"ridge": RidgeHeads, "mlp": MlpHeads}

FeatureFunction = Callable[[Sequence[int]], dict[int, Tensor]]  # rows of the samples -> features (N, V, T, C) by layer


@dataclass(frozen=True)
class ProbeSettings:
    """Settings of a probe. `position_features` adds the one-hot position of a patch to its features.

    With position features, a layer lowers the error only by what it knows beyond the usual depth at a position.
    """

    head: str = "ridge"
    batch_size: int = 16
    position_features: bool = False


@dataclass
class DepthErrors:
    """Errors on the held-out episodes. Depths are logarithms of meters."""

    layers: list[int]
    validation_errors: list[float]  # by layer: root mean squared log-depth error on the validation episodes
    episodes: list[int]  # E
    relative: np.ndarray  # (E, L), mean absolute relative error
    close: np.ndarray  # (E, L), share of patches within the factor `CLOSE`
    predicted: Tensor  # (L, N, V, T, K)

    @property
    def selected_index(self) -> int:
        """Return the index in `layers` of the layer with the lowest validation error."""
        return int(np.argmin(self.validation_errors))


def probe_policy(
    policy: RocketForActionPrediction,
    processor: RocketProcessor,
    samples: DepthSamples,
    settings: ProbeSettings = ProbeSettings(),
) -> DepthErrors:
    """Probe the layers 0..depth of a policy."""
    grid = policy.config.policy_config.image_grid
    features = policy_features(policy.eval(), processor, samples)
    return probe(features, samples, processor, grid, settings)


def probe_teacher(
    teacher: FrozenTeacher,
    windows: Sequence[Window],
    grid: Grid,
    processor: RocketProcessor,
    samples: DepthSamples,
    settings: ProbeSettings = ProbeSettings(),
) -> DepthErrors:
    """Probe the layers 1..depth of a teacher at the patches of a policy. `windows` are the image regions that the
    policy's cameras show."""
    features = teacher_features(teacher, windows, grid, processor, samples)
    return probe(features, samples, processor, grid, settings)


def policy_features(
    policy: RocketForActionPrediction, processor: RocketProcessor, samples: DepthSamples
) -> FeatureFunction:
    cameras = [(name, samples.camera_index(name)) for name in processor.cameras]
    layers = range(policy.config.policy_config.depth + 1)
    reads_state = policy.config.policy_config.reads_state
    if reads_state and samples.states.shape[1] != processor.state_dim:
        raise UserError(
            f"the policy expects a state of {processor.state_dim} numbers, but the dataset has states of "
            f"{samples.states.shape[1]} numbers: record a dataset with the policy's robot"
        )

    def features(rows: Sequence[int]) -> dict[int, Tensor]:
        indices = list(rows)
        images = {name: samples.images[indices, camera].to(policy.device) for name, camera in cameras}
        state = samples.states[indices] if reads_state else None
        batch = processor(images=images, task=[samples.tasks[row] for row in indices], state=state)
        return policy.policy(dict(batch), layers).taps

    return features


def teacher_features(
    teacher: FrozenTeacher, windows: Sequence[Window], grid: Grid, processor: RocketProcessor, samples: DepthSamples
) -> FeatureFunction:
    cameras = [samples.camera_index(name) for name in processor.cameras]
    layers = range(1, teacher.card.depth + 1)

    def features(rows: Sequence[int]) -> dict[int, Tensor]:
        images = [samples.images[list(rows), camera] for camera in cameras]
        output = teacher.features(scene_images(images, teacher), layers)
        return {
            layer: torch.stack([
                register_features(maps[:, camera], output.grid, grid, window, code_weight=0)
                for camera, window in enumerate(windows)
            ], dim=1)
            for layer, maps in output.maps.items()
        }  # fmt: skip

    return features


@torch.no_grad()
def probe(
    feature_function: FeatureFunction,
    samples: DepthSamples,
    processor: RocketProcessor,
    grid: Grid,
    settings: ProbeSettings,
) -> DepthErrors:
    """Fit one head per layer and return its errors on the held-out episodes."""
    heads = HEADS[settings.head]()
    target = target_depth(samples, processor, grid, heads.cells_per_side)

    def batches(part: str, seed: int | None = None) -> Iterator[ProbeBatch]:
        rows = samples.rows(part)
        if seed is not None:
            rows = np.random.default_rng(seed).permutation(rows).tolist()
        starts = range(0, len(rows), settings.batch_size)
        for start in tqdm(starts, desc=part, unit="batch", disable=None, leave=False):
            batch_rows = rows[start : start + settings.batch_size]
            features = feature_function(batch_rows)
            yield add_positions(features) if settings.position_features else features, target[batch_rows]

    validation_errors = heads.fit(lambda seed=None: batches(TRAIN, seed), lambda: batches(VALIDATION))
    predicted = torch.cat([heads.predict(features) for features, _ in batches(TEST)], dim=1)
    rows = samples.rows(TEST)
    episodes, relative, close = errors_per_episode(predicted, target[rows], [samples.episodes[row] for row in rows])
    layers, errors = list(validation_errors), list(validation_errors.values())
    return DepthErrors(layers, errors, episodes, relative, close, predicted)


def add_positions(features: dict[int, Tensor]) -> dict[int, Tensor]:
    """Append the one-hot position of each patch to its features, (N, V, T, C + V x T)."""
    count, cameras, tokens, _ = next(iter(features.values())).shape
    positions = torch.eye(cameras * tokens).view(cameras, tokens, -1).expand(count, -1, -1, -1)
    return {layer: torch.cat([maps, positions.to(maps)], dim=-1) for layer, maps in features.items()}


def target_depth(samples: DepthSamples, processor: RocketProcessor, grid: Grid, cells_per_side: int) -> Tensor:
    """Return the log-depth of each patch of the processor's cameras, (N, V, T, K)."""
    cameras = [samples.camera_index(name) for name in processor.cameras]
    parts = samples.depth.split(DEPTH_BATCH)
    return torch.cat([log_depth_of_patches(part[:, cameras], processor, grid, cells_per_side) for part in parts])


def errors_per_episode(
    predicted: Tensor, target: Tensor, episodes: Sequence[int]
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Compare (L, N, V, T, K) with (N, V, T, K). Return the episodes, and for each its mean relative error and its
    share of close cells, (E, L)."""
    names = list(dict.fromkeys(episodes))
    relative, close = [], []
    for name in names:
        rows = [row for row, episode in enumerate(episodes) if episode == name]
        is_known = target[rows].isfinite()
        difference = (predicted[:, rows] - target[rows])[:, is_known].double()  # (L, cells with a depth)
        relative.append((difference.exp() - 1).abs().mean(dim=1))
        close.append((difference.abs() < np.log(CLOSE)).double().mean(dim=1))
    return names, torch.stack(relative).numpy(), torch.stack(close).numpy()


def constant_errors(
    samples: DepthSamples, processor: RocketProcessor, grid: Grid, head: str = "ridge"
) -> dict[str, DepthErrors]:
    """Return the errors of two constant predictions: the mean log-depth of all patches, and the mean at each patch.

    They are the errors of heads on features without information, and on the patch position alone. Means are over the
    episodes that are not held out.
    """
    target = target_depth(samples, processor, grid, HEADS[head].cells_per_side)
    known = target[[row for row, part in enumerate(samples.parts) if part != TEST]]
    rows, mean = samples.rows(TEST), known.nanmean()
    patch_means = known.nanmean(dim=0)
    constants = {ONE_CONSTANT: mean.expand_as(patch_means), CONSTANT_PER_PATCH: patch_means.nan_to_num(nan=mean.item())}
    errors = {}
    for name, constant in constants.items():
        predicted = constant.expand(1, len(rows), *patch_means.shape)
        metrics = errors_per_episode(predicted, target[rows], [samples.episodes[row] for row in rows])
        errors[name] = DepthErrors([0], [0.0], *metrics, predicted)
    return errors
