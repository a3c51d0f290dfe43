"""A teacher from recorded scenes: trained on some tasks, measured on the others."""

import time
from collections.abc import Iterable

import torch

from rocket_hf.errors import UserError
from rocket_hf.modeling.strict_config import nearest

from .evaluation import camera_report, depth_report, layer_report
from .folder import as_stored
from .heads import GeometryModel
from .pretrain import SMALL, Pretrained, Settings, new_model, pretrain, small_vggt
from .scenes import Scenes

PROBED = 400  # scenes that the linear maps of layers are fitted on
SHOWN = 20  # steps at the beginning and at the end, whose mean losses are told


def make_teacher(
    scenes: Scenes, cameras: list[str], held_out: Iterable[str], settings: Settings
) -> tuple[GeometryModel, dict]:
    """The model as it will be stored, and what is known of it."""
    unseen_tasks = check_held_out(held_out, set(scenes.tasks))
    known, unseen = (scenes.where_task(unseen_tasks, is_in) for is_in in (False, True))
    config = small_vggt(check_size(scenes))
    started = time.monotonic()
    trained = pretrain(known, config, settings)
    seconds = time.monotonic() - started
    model = as_stored(trained.model)
    report = {
        "data": {
            "cameras": cameras,
            "frames": len(known),
            "held_out_frames": len(unseen),
            "tasks": sorted(set(known.tasks)),
            "held_out_tasks": sorted(unseen_tasks),
        },
        "training": training_report(trained, settings, seconds),
        "depth": depth_report(model, known, unseen, cameras),
        "camera": camera_report(model, known, unseen),
        "layers": layer_report(model, new_model(config, settings.seed), some(known), unseen),
    }
    return model, report


def training_report(trained: Pretrained, settings: Settings, seconds: float) -> dict:
    return {
        **vars(settings),
        "parameters": sum(weight.numel() for weight in trained.model.aggregator.parameters()),
        "seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "losses": {name: [mean(values[:SHOWN]), mean(values[-SHOWN:])] for name, values in trained.losses.items()},
    }


def mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 4)


def some(scenes: Scenes) -> Scenes:
    """Evenly spread over all."""
    rows = torch.linspace(0, len(scenes) - 1, min(PROBED, len(scenes))).long()
    return scenes.of(rows, torch.arange(scenes.images.shape[1]).expand(len(rows), -1))


def check_held_out(held_out: Iterable[str], tasks: set[str]) -> set[str]:
    chosen = set(held_out)
    for task in sorted(chosen - tasks):
        raise UserError(f"the dataset has no task {task!r} to hold out: {nearest(task, tasks)}")
    if not chosen or chosen == tasks:
        raise UserError(
            f"hold out some of the {len(tasks)} tasks and train on the others: what a teacher sees of tasks that "
            "it knows says little"
        )
    return chosen


def check_size(scenes: Scenes) -> int:
    height, width = scenes.images.shape[-2:]
    patch = SMALL["patch_size"]
    if height != width or height % patch:
        raise UserError(
            f"the pictures are {width} x {height} pixels (width x height): record squares of a multiple of {patch}"
        )
    return height
