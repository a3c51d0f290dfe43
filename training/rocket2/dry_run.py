"""What a recipe of ROCKET-2 would do: its data, what trains, samples and cost. No picture is read."""

from collections import Counter

import torch
from torch.utils.flop_counter import FlopCounterMode

from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction

from ..data.mixture import split_episodes
from ..recipe import Recipe
from ..recipe_checks import passes
from .dataset import RecordedRooms
from .policy import check_placement
from .task import open_data

META = torch.device("meta")


def sections(recipe: Recipe, ranks: int) -> dict[str, list[str]]:
    check_placement()
    config, data = open_data(recipe)
    with META:
        policy = Rocket2ForActionPrediction(config).train()
    return {
        "data": data_lines(recipe, data),
        "trains": training_lines(policy),
        "steps": step_lines(recipe, data, ranks),
        "compute": compute_lines(recipe, policy),
    }


def data_lines(recipe: Recipe, data: RecordedRooms) -> list[str]:
    rooms, held_out = split_episodes(data.rooms, recipe.data.validation, recipe.run.seed)
    walks = [episode for episode in data.episodes if episode.target]
    return [
        f"{len(data):,} frames in {len(data.rooms)} rooms: {len(data.episodes) - len(walks)} times views, "
        f"{len(walks)} ways to an object",
        f"{len(rooms)} rooms to train on, {len(held_out)} to validate with",
    ]


def training_lines(policy: Rocket2ForActionPrediction) -> list[str]:
    every: Counter[str] = Counter()
    training: Counter[str] = Counter()
    for name, parameter in policy.named_parameters():
        part = name.partition(".")[0]
        every[part] += parameter.numel()
        training[part] += parameter.numel() * parameter.requires_grad
    return [f"{part:18}{training[part]:>15,} of {every[part]:,} weights" for part in every]


def step_lines(recipe: Recipe, data: RecordedRooms, ranks: int) -> list[str]:
    goals, run = recipe.goals, recipe.run
    assert goals is not None
    each, count = passes(recipe, ranks)
    return [
        f"{run.steps:,} of {run.batch_size} samples: {ranks} processes x {each} samples x {count} passes, each of up "
        f"to {goals.chunks} chunks of {goals.chunk_steps} steps",
        f"views alone in the first {min(goals.warmup_steps, run.steps):,}, then {goals.views_share:.0%} of the samples",
        f"at most {run.steps * run.batch_size * goals.chunks * goals.chunk_steps / len(data):.1f} times all frames",
    ]


def compute_lines(recipe: Recipe, policy: Rocket2ForActionPrediction) -> list[str]:
    goals = recipe.goals
    assert goals is not None
    fake = policy.config.fake_batch(1, goals.chunk_steps, goals.goals)
    batch = {key: value.to(META) for key, value in fake.items()}
    with FlopCounterMode(display=False) as counter:
        losses = policy(**batch).losses
        torch.stack(list(losses.values())).sum().backward()
    sample = counter.get_total_flops() * goals.chunks
    samples = recipe.run.steps * recipe.run.batch_size
    return [f"{sample / 1e9:.3g} GFLOP a sample at most, {samples * sample / 1e15:.3g} PFLOP in all"]
