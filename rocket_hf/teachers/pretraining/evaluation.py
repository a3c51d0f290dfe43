"""How well a small VGGT sees tasks that it was not trained on, and against what.

Depth is measured as the mean absolute relative error, |d - d*| / d*, over the pixels that count. The baselines know the
training scenes: the one depth that fits them best, and the best map of depths for each camera.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from rocket_hf.ridge_regression import LinearSums, with_constant

from .geometry import rotation_angles
from .heads import Geometry, GeometryModel
from .losses import FARTHEST, NEAREST, seen
from .scenes import Scenes

BATCH = 32
RIDGE = 1e-3  # of the mean squared feature, which is 1


def relative_errors(found: Tensor, wanted: Tensor) -> list[float]:
    """Of depths (N, V, H, W), for each camera."""
    valid = seen(wanted)
    errors = torch.where(valid, (found - wanted).abs() / wanted.clamp(min=NEAREST), 0)
    return (errors.sum(dim=(0, 2, 3)) / valid.sum(dim=(0, 2, 3)).clamp(min=1)).tolist()


@torch.no_grad()
def predictions(model: GeometryModel, scenes: Scenes, alone: bool) -> Geometry:
    """Of every scene at once, or of every camera as a scene of its own."""
    parts = []
    for batch in batches(scenes):
        pictures = batch.frames()
        found = vars(model(pictures.flatten(0, 1).unsqueeze(1) if alone else pictures))
        parts.append([values.flatten(0, 1).unflatten(0, pictures.shape[:2]) for values in found.values()])
    return Geometry(*(torch.cat(each) for each in zip(*parts, strict=True)))


def batches(scenes: Scenes) -> Iterator[Scenes]:
    cameras = torch.arange(scenes.images.shape[1])
    for rows in torch.arange(len(scenes)).split(BATCH):
        yield scenes.of(rows, cameras.expand(len(rows), -1))


def depth_report(model: GeometryModel, known: Scenes, unseen: Scenes, cameras: list[str]) -> dict:
    """Relative errors on the unseen scenes, by method: of each camera and of all."""
    wanted = unseen.depth.float()
    maps = constant_maps(known)
    methods = {
        "all cameras together": predictions(model, unseen, alone=False).log_depth.exp(),
        "each camera alone": predictions(model, unseen, alone=True).log_depth.exp(),
        "constant map of each camera": maps.expand_as(wanted),
        "one constant": torch.full_like(wanted, one_constant(known)),
    }
    by_camera = {name: relative_errors(found, wanted) for name, found in methods.items()}
    return {
        name: {"mean": sum(errors) / len(errors)} | dict(zip(cameras, errors, strict=True))
        for name, errors in by_camera.items()
    }


def constant_maps(scenes: Scenes) -> Tensor:
    """(V, H, W): of each pixel of each camera the depth that has the least mean relative error."""
    cameras = scenes.depth.unbind(dim=1)  # (N, H, W) each
    return torch.stack([best_constants(camera.flatten(1).T).view(camera.shape[1:]) for camera in cameras])


def one_constant(scenes: Scenes) -> float:
    every = max(1, scenes.depth.numel() // 2_000_000)
    return best_constants(scenes.depth.flatten()[::every][None]).item()


def best_constants(depth: Tensor) -> Tensor:
    """Of depths (rows, samples): sum |c - d| / d is least at the median of d weighted by 1 / d. The median of rows
    that no sample counts in is the farthest depth."""
    ordered = depth.float().sort(dim=1).values
    weights = torch.where(seen(ordered), 1 / ordered.clamp(min=NEAREST), 0)
    reached = weights.cumsum(dim=1) >= weights.sum(dim=1, keepdim=True) / 2
    found = ordered.gather(1, reached.int().argmax(dim=1, keepdim=True)).squeeze(1)
    return torch.where(weights.any(dim=1), found, FARTHEST)


def camera_report(model: GeometryModel, known: Scenes, unseen: Scenes) -> dict:
    """Median errors of the cameras beside the first, and what the mean pose of the known scenes would err."""
    found, wanted, before = predictions(model, unseen, alone=False), unseen.truth(), known.truth()
    usual = before.translations.mean(dim=0).expand_as(wanted.translations)

    def off(translations: Tensor) -> float:
        return (translations - wanted.translations)[:, 1:].norm(dim=-1).median().item()

    degrees = rotation_angles(found.quaternions, wanted.quaternions)[:, 1:].median().item()
    return {"translation_meters": off(found.translations), "rotation_degrees": degrees, "usual_meters": off(usual)}


# How much of depth can be read off each layer by a linear map


def layer_report(model: GeometryModel, untrained: GeometryModel, known: Scenes, unseen: Scenes) -> dict:
    """Relative errors of ridge regression from the patches of each layer to their depth, by layer."""
    errors = {}
    for name, each in (("untrained", untrained), ("trained", model)):
        learned, tested = patch_features(each, known), patch_features(each, unseen)
        wanted, test = patch_log_depth(known, model), patch_log_depth(unseen, model)
        errors[name] = {layer: probe_error(learned[layer], wanted, tested[layer], test) for layer in learned}
    return {str(layer): {name: errors[name][layer] for name in errors} for layer in errors["trained"]}


@torch.no_grad()
def patch_features(model: GeometryModel, scenes: Scenes) -> dict[int, Tensor]:
    """Of every layer, (patches of all frames, C)."""
    layers = list(range(1, model.config.depth + 1))
    parts = [model.aggregator(batch.frames(), layers) for batch in batches(scenes)]
    return {layer: torch.cat([part[layer].flatten(0, 2) for part in parts]) for layer in layers}


def patch_log_depth(scenes: Scenes, model: GeometryModel) -> Tensor:
    """The mean over a patch's pixels that count, (patches of all frames,); NaN where fewer than half do."""
    side = model.config.patch_size
    depth = scenes.depth.float().unfold(2, side, side).unfold(3, side, side).flatten(4)  # (N, V, rows, columns, pixels)
    valid = seen(depth)
    mean = torch.where(valid, depth.clamp(min=NEAREST).log(), 0).sum(dim=-1) / valid.sum(dim=-1)
    return torch.where(valid.float().mean(dim=-1) >= 0.5, mean, torch.nan).flatten()


def probe_error(features: Tensor, wanted: Tensor, tested: Tensor, test: Tensor) -> float:
    """Of log-depths fitted on the first, the mean relative error of depth on the second."""
    mean, deviation = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    fitted = ridge(((features - mean) / deviation)[wanted.isfinite()], wanted[wanted.isfinite()])
    found = with_constant((tested - mean) / deviation)[test.isfinite()] @ fitted
    return ((found - test[test.isfinite()].double()).exp() - 1).abs().mean().item()


def ridge(features: Tensor, wanted: Tensor) -> Tensor:
    """The weights, and the constant last, which is not held small."""
    sums = LinearSums(features.shape[1])
    sums.add(features, wanted)
    return sums.weights(torch.full((features.shape[1],), RIDGE * len(features)))
