"""What a recipe would do: its settings, what trains, the layer pairs, memory, samples, cost."""

from accelerate import Accelerator

from .recipe import Recipe


def describe(recipe: Recipe, accelerator: Accelerator) -> str:
    return recipe.name
