"""The aligned layer pairs of a recipe: chosen by depth for its policy and teacher, or listed, and checked."""

from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.policy_interface import resolve_layer
from rocket_hf.teachers.cache_manifest import Manifest
from rocket_hf.teachers.load import load_teacher

from ..base_policy import find_policy_folder
from ..distributed.agreement import main_process_first
from ..recipe import AlignmentSettings, VLARecipe
from .layers_by_depth import OTHER_CHOICE, pairs_by_depth


def resolve_layer_pairs(recipe: VLARecipe, accelerator: Accelerator) -> VLARecipe:
    """Return the recipe with the list of its layer pairs, which must exist in the policy."""
    if recipe.alignment is None:
        return recipe
    with main_process_first(accelerator):  # so that downloads happen once
        policy = RocketConfig.from_pretrained(find_policy_folder(recipe.policy), alignment=None)
        student_depth = policy.policy_config.depth
        if recipe.alignment.pairs is None:
            check_student_layers(recipe.alignment, student_depth)
            return recipe
        teacher_depth = read_teacher_depth(recipe)
    pairs = pairs_by_depth(recipe.alignment.strategy, student_depth, teacher_depth, recipe.alignment.pairs)
    students, teachers = [pair.student for pair in pairs], [pair.teacher for pair in pairs]
    listed = replace(recipe.alignment, pairs=None, student_layers=students, teacher_layers=teachers)
    return replace(recipe, alignment=listed)


def check_student_layers(alignment: AlignmentSettings, depth: int) -> None:
    for layer in alignment.student_layers:
        try:
            resolve_layer(layer, depth)
        except UserError as error:
            raise UserError(f"alignment.student_layers: {error}; {OTHER_CHOICE}") from None


def read_teacher_depth(recipe: VLARecipe) -> int:
    teacher = recipe.teacher
    if teacher.caches:
        return Manifest.load(Path(teacher.caches[0])).depth
    return load_teacher(teacher.name, teacher.revision, teacher.resolution, device=torch.device("meta")).card.depth
