"""Description of a run before it starts: recipe, data, trained weights, steps and cost."""

from accelerate import Accelerator

from .recipe import BaseRecipe, Rocket2Recipe, VLARecipe
from .recipe_files import changed_settings
from .rocket2.dry_run import rocket2_sections
from .vla.dry_run import vla_sections


def describe_run(recipe: BaseRecipe, accelerator: Accelerator) -> str:
    """Return the description that `--dry-run` prints. Only configurations and the datasets' tables are read."""
    if isinstance(recipe, Rocket2Recipe):
        sections = rocket2_sections(recipe, accelerator.num_processes)
    else:
        assert isinstance(recipe, VLARecipe)
        sections = vla_sections(recipe, accelerator)
    sections = {"recipe": recipe_lines(recipe), **sections}
    return "\n".join(
        f"{'' if number else name:10}{line}" for name, lines in sections.items() for number, line in enumerate(lines)
    )


def recipe_lines(recipe: BaseRecipe) -> list[str]:
    hidden = ["name", "about"]
    if isinstance(recipe, VLARecipe) and recipe.alignment is not None and recipe.alignment.pairs is not None:
        hidden += ["alignment.student_layers", "alignment.teacher_layers"]  # `pairs` replaces them
    rows = [(key, value) for key, value in changed_settings(recipe) if key not in hidden]
    return [recipe.name, *(f"  {key}: {value}" for key, value in rows)]
