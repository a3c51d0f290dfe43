"""Depth probes of runs, of their policies before training and of a teacher (`rocket-hf analyze depth`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rocket_hf.errors import UserError
from rocket_hf.evaluation.identity import fingerprint
from rocket_hf.evaluation.trained_policy import TrainedPolicySource, find_trained_policy, load_trained_policy
from rocket_hf.files import create_folder
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.teachers.load import load_teacher
from rocket_hf.training.base_policy import find_policy_folder
from rocket_hf.training.recipe import VLARecipe
from rocket_hf.training.vla.resources import load_policy, robot_changes
from rocket_hf.training.vla.targets import image_windows

from .depth_figures import ProbedModel, draw_errors, draw_predictions
from .depth_probe import ProbeSettings, constant_errors, probe_policy, probe_teacher
from .depth_progress import DepthProgress
from .depth_report import CONSTANT, RUN, TEACHER, UNTRAINED, DepthResult, write_depth_tables
from .depth_samples import TEST, DepthSamples


@dataclass
class DepthAnalysis:
    """Frames with known depth, and the settings and device with which models are probed on them.

    `progress` holds the probes that a killed analysis has finished.
    """

    samples: DepthSamples
    settings: ProbeSettings
    device: torch.device
    progress: DepthProgress

    def probe_policy(
        self, name: str, kind: str, policy: RocketForActionPrediction, processor: RocketProcessor
    ) -> ProbedModel:
        """Probe a policy. `kind` is RUN or UNTRAINED."""
        errors = self.progress.probe(
            fingerprint(policy, processor),
            lambda: probe_policy(policy.to(self.device), processor, self.samples, self.settings),
        )
        return ProbedModel(DepthResult(name, kind, errors), policy.config.policy_config.image_grid, processor)

    def probe_teacher(self, name: str, policy: ProbedModel) -> ProbedModel:
        """Probe a teacher at the image patches of `policy`, so that their errors are comparable.

        Args:
            name: Folder or Hub id of the teacher, the latter with an optional "@REVISION".
            policy: Probed policy whose cameras and image patches are used.
        """
        source, _, revision = name.partition("@")
        teacher = load_teacher(source, revision or None, device=self.device)
        height, width = self.samples.images.shape[-2:]
        windows = image_windows(policy.processor, [(height, width)] * len(policy.processor.cameras))
        errors = self.progress.probe(
            f"{teacher.card.weights} {teacher.resolution} {policy.grid} {windows}",
            lambda: probe_teacher(teacher, windows, policy.grid, policy.processor, self.samples, self.settings),
        )
        return ProbedModel(DepthResult(f"teacher {teacher.card.name}", TEACHER, errors), policy.grid, policy.processor)


def probe_runs(analysis: DepthAnalysis, paths: Sequence[Path], teacher: str | None) -> list[ProbedModel]:
    """Probe the runs, then their policies before training, then the teacher.

    Runs that started from the same weights share one untrained policy.
    """
    sources = [find_trained_policy(path) for path in paths]
    known_recipes = [recipe for source in sources if (recipe := vla_recipe(source)) is not None]
    recipes = {initial_weights_key(recipe): recipe for recipe in known_recipes}
    folders = {key: untrained_policy_folder(recipe) for key, recipe in recipes.items()}
    models = [
        analysis.probe_policy(name, RUN, *load_trained_policy(source))
        for name, source in zip(run_names(paths), sources, strict=True)
    ]
    for number, (key, recipe) in enumerate(recipes.items()):
        name = "untrained" if len(recipes) == 1 else f"untrained {number + 1}"
        runs = zip(models, sources, strict=False)  # without the untrained policies at the end of `models`
        processor = next(run.processor for run, source in runs if is_initialized_from(source, key))
        models.append(analysis.probe_policy(name, UNTRAINED, load_policy(folders[key], None, recipe), processor))
    return models + ([analysis.probe_teacher(teacher, models[0])] if teacher is not None else [])


def untrained_policy_folder(recipe: VLARecipe) -> Path:
    """Return the folder of the policy from which the recipe starts."""
    try:
        return find_policy_folder(recipe.policy)
    except UserError as error:
        raise UserError(
            f"the run is compared with the untrained policy of recipe {recipe.name}, which cannot be found ({error}): "
            "run the command in the folder where training was started, or pass a copy of the run's policy/ folder"
        ) from error


def initial_weights_key(recipe: VLARecipe) -> str:
    """Return a key that is equal for runs whose untrained policies have the same features.

    Only the starting policy, the robot settings and the dtype of the frozen weights change them.
    """
    return f"{recipe.policy} {robot_changes(recipe)} {recipe.run.base_dtype}"


def is_initialized_from(source: TrainedPolicySource, key: str) -> bool:
    """Return whether the run started from the weights that `initial_weights_key` names `key`."""
    recipe = vla_recipe(source)
    return recipe is not None and initial_weights_key(recipe) == key


def vla_recipe(source: TrainedPolicySource) -> VLARecipe | None:
    """Return the VLA recipe of a run, or None for a policy without a run or a run of another kind."""
    recipe = source.recipe
    return recipe if isinstance(recipe, VLARecipe) else None


def run_names(paths: Sequence[Path]) -> list[str]:
    """Return the names of the run folders, with as many parent folders as needed to make them unique."""
    parts = [path.resolve().parts for path in paths]
    repeated = [str(path) for path, part in zip(paths, parts, strict=True) if parts.count(part) > 1]
    if repeated:
        raise UserError(f"a run is listed twice ({', '.join(repeated)}): list each run once")
    count = next(count for count in range(1, max(map(len, parts)) + 1)
                 if len({part[-count:] for part in parts}) == len(parts))  # fmt: skip
    return ["/".join(part[-count:]) for part in parts]


def write_depth_results(
    folder: Path, analysis: DepthAnalysis, models: Sequence[ProbedModel], dataset: str
) -> list[DepthResult]:
    """Write depth.csv, depth.json, depth.png and predicted-depth.png.

    Returns:
        The results of `models`, followed by those of the constant predictions.
    """
    samples, settings, first = analysis.samples, analysis.settings, models[0]
    constants = constant_errors(samples, first.processor, first.grid, settings.head)
    results = [model.result for model in models]
    results += [DepthResult(name, CONSTANT, errors) for name, errors in constants.items()]
    held_out = {samples.tasks[row] for row in samples.rows(TEST)}
    about = {
        "dataset": dataset,
        "head": settings.head,
        "position_features": settings.position_features,
        "frames": len(samples),
        "held_out_frames": len(samples.rows(TEST)),
        "held_out_tasks": sorted(held_out),
        "other_tasks": sorted(set(samples.tasks) - held_out),
    }
    create_folder(folder)
    write_depth_tables(folder, results, about)
    draw_errors(folder / "depth.png", results)
    draw_predictions(folder / "predicted-depth.png", models, samples)
    return results
