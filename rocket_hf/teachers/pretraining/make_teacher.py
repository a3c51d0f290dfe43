"""Training and evaluation of a teacher on recorded scenes: some tasks for training, the others for testing."""

import time
from collections.abc import Iterable

import torch

from rocket_hf.errors import UserError
from rocket_hf.modeling.strict_config import suggest_name

from .evaluation import camera_report, depth_report, layer_report
from .folder import round_as_stored
from .heads import GeometryModel
from .pretrain import SMALL, PretrainingResult, PretrainingSettings, build_model, pretrain, small_vggt
from .scenes import RgbdScenes

PROBE_SCENES = 400  # number of training scenes on which the linear probes of the layers are fitted
AVERAGED_STEPS = 20  # number of first and of last steps whose mean losses are reported


def make_teacher(
    scenes: RgbdScenes, cameras: list[str], held_out: Iterable[str], settings: PretrainingSettings
) -> tuple[GeometryModel, dict]:
    """Return the trained model, with its weights rounded as they will be stored, and its report."""
    test_tasks = check_held_out(held_out, set(scenes.tasks))
    train, test = (scenes.select_tasks(test_tasks, is_in) for is_in in (False, True))
    config = small_vggt(check_size(scenes))
    start = time.monotonic()
    result = pretrain(train, config, settings)
    seconds = time.monotonic() - start
    model = round_as_stored(result.model)
    report = {
        "data": {
            "cameras": cameras,
            "frames": len(train),
            "held_out_frames": len(test),
            "tasks": sorted(set(train.tasks)),
            "held_out_tasks": sorted(test_tasks),
        },
        "training": training_report(result, settings, seconds),
        "depth": depth_report(model, train, test, cameras),
        "camera": camera_report(model, train, test),
        "layers": layer_report(model, build_model(config, settings.seed), probe_scenes(train), test),
    }
    return model, report


def training_report(result: PretrainingResult, settings: PretrainingSettings, seconds: float) -> dict:
    return {
        **vars(settings),
        "parameters": sum(weight.numel() for weight in result.model.aggregator.parameters()),
        "seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "losses": {
            name: [rounded_mean(values[:AVERAGED_STEPS]), rounded_mean(values[-AVERAGED_STEPS:])]
            for name, values in result.losses.items()
        },
    }


def rounded_mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 4)


def probe_scenes(scenes: RgbdScenes) -> RgbdScenes:
    """Return PROBE_SCENES scenes, evenly spaced."""
    rows = torch.linspace(0, len(scenes) - 1, min(PROBE_SCENES, len(scenes))).long()
    return scenes.select(rows, torch.arange(scenes.images.shape[1]).expand(len(rows), -1))


def check_held_out(held_out: Iterable[str], tasks: set[str]) -> set[str]:
    chosen = set(held_out)
    for task in sorted(chosen - tasks):
        raise UserError(f"the dataset has no task {task!r} to hold out: {suggest_name(task, tasks)}")
    if not chosen or chosen == tasks:
        raise UserError(
            f"{len(chosen)} of the {len(tasks)} tasks are held out: hold out at least one with --held-out, and leave "
            "at least one for training"
        )
    return chosen


def check_size(scenes: RgbdScenes) -> int:
    height, width = scenes.images.shape[-2:]
    patch = SMALL["patch_size"]
    if height != width or height % patch:
        raise UserError(
            f"the dataset's images are {width} x {height} pixels (width x height): record square images whose side is "
            f"a multiple of {patch} (`rocket-hf simulate --image-size`)"
        )
    return height
