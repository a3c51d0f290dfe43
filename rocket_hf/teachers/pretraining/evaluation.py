"""Evaluation of a small VGGT on held-out tasks, compared with baselines that know the training scenes.

The depth error is the mean absolute relative error, |d - d*| / d*, over the pixels with valid depth. The baselines are
the best single depth for the training scenes, and the best constant depth map of each camera.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from rocket_hf.ridge_regression import LinearSums, with_constant

from .geometry import rotation_angles
from .heads import GeometryModel, GeometryPrediction
from .losses import FARTHEST, NEAREST, is_valid_depth
from .scenes import RgbdScenes

BATCH = 32
RIDGE = 1e-3  # relative to the mean squared feature, which is 1


def relative_errors(predicted: Tensor, target: Tensor) -> list[float]:
    """Return the mean relative error of each camera for depths (N, V, H, W)."""
    valid = is_valid_depth(target)
    errors = torch.where(valid, (predicted - target).abs() / target.clamp(min=NEAREST), 0)
    return (errors.sum(dim=(0, 2, 3)) / valid.sum(dim=(0, 2, 3)).clamp(min=1)).tolist()


@torch.no_grad()
def predict_geometry(model: GeometryModel, scenes: RgbdScenes, single_cameras: bool) -> GeometryPrediction:
    """Predict the geometry of all scenes; with `single_cameras`, each camera is a scene of its own."""
    parts = []
    for batch in batches(scenes):
        images = batch.frames()
        predicted = vars(model(images.flatten(0, 1).unsqueeze(1) if single_cameras else images))
        parts.append([values.flatten(0, 1).unflatten(0, images.shape[:2]) for values in predicted.values()])
    return GeometryPrediction(*(torch.cat(each) for each in zip(*parts, strict=True)))


def batches(scenes: RgbdScenes) -> Iterator[RgbdScenes]:
    cameras = torch.arange(scenes.images.shape[1])
    for rows in torch.arange(len(scenes)).split(BATCH):
        yield scenes.select(rows, cameras.expand(len(rows), -1))


def depth_report(model: GeometryModel, train: RgbdScenes, test: RgbdScenes, cameras: list[str]) -> dict:
    """Return the relative errors on the test scenes for each method: mean, and error of each camera."""
    target = test.depth.float()
    maps = constant_maps(train)
    methods = {
        "all cameras together": predict_geometry(model, test, single_cameras=False).log_depth.exp(),
        "each camera alone": predict_geometry(model, test, single_cameras=True).log_depth.exp(),
        "constant map of each camera": maps.expand_as(target),
        "one constant": torch.full_like(target, one_constant(train)),
    }
    errors = {name: relative_errors(predicted, target) for name, predicted in methods.items()}
    return {
        name: {"mean": sum(values) / len(values)} | dict(zip(cameras, values, strict=True))
        for name, values in errors.items()
    }


def constant_maps(scenes: RgbdScenes) -> Tensor:
    """Return for each pixel of each camera the depth with the least mean relative error: (V, H, W)."""
    cameras = scenes.depth.unbind(dim=1)  # (N, H, W) each
    return torch.stack([best_constants(camera.flatten(1).T).view(camera.shape[1:]) for camera in cameras])


def one_constant(scenes: RgbdScenes) -> float:
    stride = max(1, scenes.depth.numel() // 2_000_000)
    return best_constants(scenes.depth.flatten()[::stride][None]).item()


def best_constants(depth: Tensor) -> Tensor:
    """Return the constant c with the least sum of |c - d| / d for each row of depths (rows, samples).

    It is the median of d weighted by 1 / d. Rows without valid depth get the farthest depth.
    """
    ordered = depth.float().sort(dim=1).values
    weights = torch.where(is_valid_depth(ordered), 1 / ordered.clamp(min=NEAREST), 0)
    is_past_half = weights.cumsum(dim=1) >= weights.sum(dim=1, keepdim=True) / 2
    medians = ordered.gather(1, is_past_half.int().argmax(dim=1, keepdim=True)).squeeze(1)
    return torch.where(weights.any(dim=1), medians, FARTHEST)


def camera_report(model: GeometryModel, train: RgbdScenes, test: RgbdScenes) -> dict:
    """Return the median pose errors of all cameras but the first, and the error of the mean pose in training.

    Scenes of one camera have no poses between cameras: the report is empty.
    """
    if test.images.shape[1] == 1:
        return {}
    predicted, target, known = predict_geometry(model, test, single_cameras=False), test.targets(), train.targets()
    mean_translations = known.translations.mean(dim=0).expand_as(target.translations)

    def median_error(translations: Tensor) -> float:
        return (translations - target.translations)[:, 1:].norm(dim=-1).median().item()

    degrees = rotation_angles(predicted.quaternions, target.quaternions)[:, 1:].median().item()
    return {
        "translation_meters": median_error(predicted.translations),
        "rotation_degrees": degrees,
        "mean_pose_meters": median_error(mean_translations),
    }


# Linear probes of depth in each layer


def layer_report(model: GeometryModel, untrained: GeometryModel, train: RgbdScenes, test: RgbdScenes) -> dict:
    """Return the relative depth error of ridge regression from each layer's patches, before and after training."""
    errors = {}
    for name, probed in (("untrained", untrained), ("trained", model)):
        train_features, test_features = patch_features(probed, train), patch_features(probed, test)
        train_depth, test_depth = patch_log_depth(train, model), patch_log_depth(test, model)
        errors[name] = {
            layer: probe_error(train_features[layer], train_depth, test_features[layer], test_depth)
            for layer in train_features
        }
    return {str(layer): {name: errors[name][layer] for name in errors} for layer in errors["trained"]}


@torch.no_grad()
def patch_features(model: GeometryModel, scenes: RgbdScenes) -> dict[int, Tensor]:
    """Return the features (patches of all frames, C) of every layer."""
    layers = list(range(1, model.config.depth + 1))
    parts = [model.aggregator(batch.frames(), layers) for batch in batches(scenes)]
    return {layer: torch.cat([part[layer].flatten(0, 2) for part in parts]) for layer in layers}


def patch_log_depth(scenes: RgbdScenes, model: GeometryModel) -> Tensor:
    """Return the mean log-depth over the valid pixels of each patch: (patches of all frames,).

    Patches of which less than half is valid get NaN.
    """
    side = model.config.patch_size
    depth = scenes.depth.float().unfold(2, side, side).unfold(3, side, side).flatten(4)  # (N, V, rows, columns, pixels)
    valid = is_valid_depth(depth)
    mean = torch.where(valid, depth.clamp(min=NEAREST).log(), 0).sum(dim=-1) / valid.sum(dim=-1)
    return torch.where(valid.float().mean(dim=-1) >= 0.5, mean, torch.nan).flatten()


def probe_error(train_features: Tensor, train_depth: Tensor, test_features: Tensor, test_depth: Tensor) -> float:
    """Fit log-depths on the training patches. Return the mean relative depth error on the test patches."""
    mean, deviation = train_features.mean(dim=0), train_features.std(dim=0).clamp(min=1e-6)
    is_known = train_depth.isfinite()
    weights = fit_ridge(((train_features - mean) / deviation)[is_known], train_depth[is_known])
    is_tested = test_depth.isfinite()
    predicted = with_constant((test_features - mean) / deviation)[is_tested] @ weights
    return ((predicted - test_depth[is_tested].double()).exp() - 1).abs().mean().item()


def fit_ridge(features: Tensor, target: Tensor) -> Tensor:
    """Return the weights of a ridge regression; the last one is the constant, which is not penalized."""
    sums = LinearSums(features.shape[1])
    sums.add(features, target)
    return sums.weights(torch.full((features.shape[1],), RIDGE * len(features)))
