"""How much a frozen model's layers tell of metric depth: a small head reads it off the features of each image patch.

The head of a layer learns from some episodes, others choose how it is held small and which layer is best, and the
errors are of episodes that it has never seen. Cameras that hang in one place show what is far at the same places again
and again, so an error says something beside `constant_errors`: those of knowing the place in the picture alone.

Shapes: N frames, V cameras, T patches of a camera, K cells of a patch, C channels, L layers, E episodes.
"""

from collections.abc import Callable, Sequence
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

from .depth_heads import MlpHeads, RidgeHeads
from .depth_samples import CHOOSE, LEARN, TEST, DepthSamples, patch_log_depth

BATCH = 16
ONE, PLACE = "one constant", "constant of each place"
CLOSE = 1.25  # delta: the share of patches whose depth is wrong by less than this factor
HEADS: dict[str, type[RidgeHeads] | type[MlpHeads]] = {"ridge": RidgeHeads, "mlp": MlpHeads}

Layers = Callable[[Sequence[int]], dict[int, Tensor]]  # of these rows of the samples: (N, V, T, C) by layer


@dataclass
class DepthErrors:
    """Of the frames held out. Depths are logarithms of meters."""

    layers: list[int]
    choice_errors: list[float]  # by layer, the root mean squared logarithm, on the episodes that choose
    episodes: list[int]  # E
    relative: np.ndarray  # (E, L), the mean absolute relative error
    close: np.ndarray  # (E, L), the share of patches within the factor `CLOSE`
    found: Tensor  # (L, N, V, T, K)

    @property
    def best(self) -> int:
        """The number, in `layers`, of the one that the episodes which choose speak for."""
        return int(np.argmin(self.choice_errors))


def depth_errors(
    policy: RocketForActionPrediction,
    processor: RocketProcessor,
    samples: DepthSamples,
    head: str = "ridge",
    batch_size: int = BATCH,
    given_place: bool = False,
) -> DepthErrors:
    """Of the layers 0..depth of a policy."""
    grid = policy.config.policy_config.image_grid
    layers = policy_layers(policy.eval(), processor, samples)
    return probe(layers, samples, processor, grid, head, batch_size, given_place)


def teacher_errors(
    teacher: FrozenTeacher,
    windows: Sequence[Window],
    grid: Grid,
    processor: RocketProcessor,
    samples: DepthSamples,
    head: str = "ridge",
    batch_size: int = BATCH,
    given_place: bool = False,
) -> DepthErrors:
    """Of the teacher's layers 1..depth at the patches of a policy, whose cameras show these windows of the pictures."""
    layers = teacher_layers(teacher, windows, grid, processor, samples)
    return probe(layers, samples, processor, grid, head, batch_size, given_place)


def policy_layers(policy: RocketForActionPrediction, processor: RocketProcessor, samples: DepthSamples) -> Layers:
    cameras = [(name, samples.of(name)) for name in processor.cameras]
    layers = range(policy.config.policy_config.depth + 1)
    with_state = policy.config.policy_config.reads_state
    if with_state and samples.states.shape[1] != processor.state_dim:
        raise UserError(f"the policy reads a state of {processor.state_dim} numbers and that of the dataset has "
                         f"{samples.states.shape[1]}: record a dataset of the same robot")  # fmt: skip

    def features(rows: Sequence[int]) -> dict[int, Tensor]:
        chosen = list(rows)
        images = {name: samples.images[chosen, number].to(policy.device) for name, number in cameras}
        state = samples.states[chosen] if with_state else None
        batch = processor(images=images, task=[samples.tasks[row] for row in chosen], state=state)
        return policy.policy(dict(batch), layers).taps

    return features


def teacher_layers(
    teacher: FrozenTeacher, windows: Sequence[Window], grid: Grid, processor: RocketProcessor, samples: DepthSamples
) -> Layers:
    cameras = [samples.of(name) for name in processor.cameras]
    layers = range(1, teacher.card.depth + 1)

    def features(rows: Sequence[int]) -> dict[int, Tensor]:
        pictures = [samples.images[list(rows), camera] for camera in cameras]
        seen = teacher.features(scene_images(pictures, teacher), layers)
        return {
            layer: torch.stack([
                register_features(maps[:, number], seen.grid, grid, window, code_weight=0)
                for number, window in enumerate(windows)
            ], dim=1)
            for layer, maps in seen.maps.items()
        }  # fmt: skip

    return features


@torch.no_grad()
def probe(
    layers: Layers,
    samples: DepthSamples,
    processor: RocketProcessor,
    grid: Grid,
    head: str,
    batch_size: int,
    given_place: bool = False,
) -> DepthErrors:
    """`given_place`: the head is told where a patch is, so that only what is not usual there is left to a layer."""
    heads = HEADS[head]()
    wanted = wanted_depth(samples, processor, grid, heads.detail)

    def batches(part: str, what: str, seed: int | None = None):
        rows = samples.rows(part)
        if seed is not None:
            rows = np.random.default_rng(seed).permutation(rows).tolist()
        starts = range(0, len(rows), batch_size)
        for start in tqdm(starts, desc=what, unit="batch", disable=None, leave=False):
            chosen = rows[start : start + batch_size]
            features = layers(chosen)
            yield with_place(features) if given_place else features, wanted[chosen]

    choice_errors = heads.fit(lambda seed=None: batches(LEARN, "learning", seed), lambda: batches(CHOOSE, "choosing"))
    parts = [heads.predict(features) for features, _ in batches(TEST, "testing")]
    found = torch.cat(parts, dim=1)
    rows = samples.rows(TEST)
    episodes, relative, close = errors_by_episode(found, wanted[rows], [samples.episodes[row] for row in rows])
    return DepthErrors(list(choice_errors), list(choice_errors.values()), episodes, relative, close, found)


def with_place(features: dict[int, Tensor]) -> dict[int, Tensor]:
    """(N, V, T, C + V x T), with a one where the patch is."""
    count, cameras, tokens, _ = next(iter(features.values())).shape
    places = torch.eye(cameras * tokens).view(cameras, tokens, -1).expand(count, -1, -1, -1)
    return {layer: torch.cat([maps, places.to(maps)], dim=-1) for layer, maps in features.items()}


def wanted_depth(samples: DepthSamples, processor: RocketProcessor, grid: Grid, detail: int) -> Tensor:
    """(N, V, T, K), of the processor's cameras."""
    cameras = [samples.of(name) for name in processor.cameras]
    parts = [patch_log_depth(part[:, cameras], processor, grid, detail) for part in samples.depth.split(BATCH)]
    return torch.cat(parts)


def errors_by_episode(
    found: Tensor, wanted: Tensor, episodes: Sequence[int]
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Of (L, N, V, T, K) and (N, V, T, K): the episodes, and of each the mean relative error and the share of cells
    that are close, (E, L)."""
    names = list(dict.fromkeys(episodes))
    relative, close = [], []
    for name in names:
        rows = [row for row, own in enumerate(episodes) if own == name]
        known = wanted[rows].isfinite()
        off = (found[:, rows] - wanted[rows])[:, known].double()  # (L, cells with a depth)
        relative.append((off.exp() - 1).abs().mean(dim=1))
        close.append((off.abs() < np.log(CLOSE)).double().mean(dim=1))
    return names, torch.stack(relative).numpy(), torch.stack(close).numpy()


def constant_errors(
    samples: DepthSamples, processor: RocketProcessor, grid: Grid, head: str = "ridge"
) -> dict[str, DepthErrors]:
    """What the same heads would tell from features that say nothing, and from the place in each camera's picture: the
    mean logarithm of all depths, and of those at each place, where a probe may learn."""
    wanted = wanted_depth(samples, processor, grid, HEADS[head].detail)
    known = wanted[[row for row, part in enumerate(samples.parts) if part != TEST]]
    rows, one = samples.rows(TEST), known.nanmean()
    each = known.nanmean(dim=0)
    constants = {ONE: one.expand_as(each), PLACE: each.nan_to_num(nan=one.item())}
    errors = {}
    for name, constant in constants.items():
        found = constant.expand(1, len(rows), *each.shape)
        figures = errors_by_episode(found, wanted[rows], [samples.episodes[row] for row in rows])
        errors[name] = DepthErrors([0], [0.0], *figures, found)
    return errors
