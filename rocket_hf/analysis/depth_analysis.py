"""What the layers of runs tell of depth, beside those of the policies that they started from and of a teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rocket_hf.errors import UserError
from rocket_hf.evaluation.trained_policy import Origin, find_origin, load_trained
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.teachers.load import load_teacher
from rocket_hf.training.recipe import VLARecipe
from rocket_hf.training.vla.resources import load_policy, policy_folder, robot_changes
from rocket_hf.training.vla.targets import picture_windows

from .depth_figures import View, draw_errors, draw_predictions
from .depth_probe import constant_errors, depth_errors, teacher_errors
from .depth_report import CONSTANT, RUN, TEACHER, UNTRAINED, Measured, write_errors
from .depth_samples import TEST, DepthSamples


@dataclass
class Probing:
    samples: DepthSamples
    device: torch.device
    head: str
    batch_size: int
    given_place: bool = False  # to the heads

    @property
    def how(self) -> tuple[DepthSamples, str, int, bool]:
        return self.samples, self.head, self.batch_size, self.given_place

    def policy(self, name: str, kind: str, policy: RocketForActionPrediction, processor: RocketProcessor) -> View:
        policy = policy.to(self.device)
        errors = depth_errors(policy, processor, *self.how)
        return View(Measured(name, kind, errors), policy.config.policy_config.image_grid, processor)

    def teacher(self, name: str, like: View) -> View:
        """At the patches of the policy in `like`."""
        known_as, _, revision = name.partition("@")
        teacher = load_teacher(known_as, revision or None, device=self.device)
        height, width = self.samples.images.shape[-2:]
        windows = picture_windows(like.processor, [(height, width)] * len(like.processor.cameras))
        errors = teacher_errors(teacher, windows, like.grid, like.processor, *self.how)
        return View(Measured(f"teacher {teacher.card.name}", TEACHER, errors), like.grid, like.processor)


def probe_runs(probing: Probing, paths: Sequence[Path], teacher: str | None) -> list[View]:
    """The runs in their order, then the policies that they started from, then the teacher."""
    origins = [find_origin(path) for path in paths]
    recipes = {start_of(origin.recipe): origin.recipe for origin in origins if origin.recipe is not None}
    folders = {start: starting_folder(recipe) for start, recipe in recipes.items()}
    views = [
        probing.policy(name, RUN, *load_trained(origin)) for name, origin in zip(run_names(paths), origins, strict=True)
    ]
    for number, (start, recipe) in enumerate(recipes.items()):
        name = "untrained" if len(recipes) == 1 else f"untrained {number + 1}"
        like = next(view for view, origin in zip(views, origins, strict=False) if is_from(origin, start))
        views.append(probing.policy(name, UNTRAINED, load_policy(folders[start], None, recipe), like.processor))
    return views + ([probing.teacher(teacher, views[0])] if teacher is not None else [])


def starting_folder(recipe: VLARecipe) -> Path:
    try:
        return policy_folder(recipe.policy)
    except ValueError as error:
        raise UserError(f"the untrained policy that {recipe.name} started from is compared with it, but {error}; go "
                         "to where the run was started, or give a copy of its policy/ alone") from error  # fmt: skip


def start_of(recipe: VLARecipe) -> str:
    """Runs for which it is the same started from the same weights, as far as image tokens are concerned."""
    return f"{recipe.policy} {robot_changes(recipe)} {recipe.run.base_dtype}"


def is_from(origin: Origin, start: str) -> bool:
    return origin.recipe is not None and start_of(origin.recipe) == start


def run_names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, with as many of those above as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    if len(set(parts)) < len(parts):
        raise UserError("a run is named twice: name each once")
    count = next(count for count in range(1, max(map(len, parts)) + 1)
                 if len({part[-count:] for part in parts}) == len(parts))  # fmt: skip
    return ["/".join(part[-count:]) for part in parts]


def write_depth(folder: Path, probing: Probing, views: Sequence[View], dataset: str) -> list[Measured]:
    """depth.csv, depth.json, depth.png and predicted-depth.png. What was measured, the constants last."""
    samples = probing.samples
    first = views[0]
    constants = constant_errors(samples, first.processor, first.grid, probing.head)
    measured = [view.measured for view in views]
    measured += [Measured(name, CONSTANT, errors) for name, errors in constants.items()]
    held_out = {samples.tasks[row] for row in samples.rows(TEST)}
    about = {
        "dataset": dataset,
        "head": probing.head,
        "given_place": probing.given_place,
        "frames": len(samples),
        "held_out_frames": len(samples.rows(TEST)),
        "held_out_tasks": sorted(held_out),
        "other_tasks": sorted(set(samples.tasks) - held_out),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_errors(folder, measured, about)
    draw_errors(folder / "depth.png", measured)
    draw_predictions(folder / "predicted-depth.png", views, samples)
    return measured
