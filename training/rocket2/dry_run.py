"""Dry run of a ROCKET-2 recipe: data, trained weights, samples and cost, without reading any image."""

from collections import Counter

import torch
from torch.utils.flop_counter import FlopCounterMode

from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction

from ..data.mixture import split_episodes
from ..recipe import Rocket2Recipe
from ..recipe_checks import split_batch
from .dataset import RecordedRooms
from .policy import check_no_sharding
from .task import open_policy_config_and_data

META = torch.device("meta")


def rocket2_sections(recipe: Rocket2Recipe, world_size: int) -> dict[str, list[str]]:
    """Return the lines of each section of the dry run."""
    check_no_sharding()
    config, data = open_policy_config_and_data(recipe)
    with META:
        policy = Rocket2ForActionPrediction(config).train()
    return {
        "data": data_lines(recipe, data),
        "trains": training_lines(policy),
        "steps": step_lines(recipe, data, world_size),
        "compute": compute_lines(recipe, policy),
    }


def data_lines(recipe: Rocket2Recipe, data: RecordedRooms) -> list[str]:
    rooms, held_out = split_episodes(data.rooms, recipe.data.validation, recipe.run.seed)
    demonstrations = [episode for episode in data.episodes if episode.target]
    return [
        f"{len(data):,} frames in {len(data.rooms)} rooms: {len(data.episodes) - len(demonstrations)} episodes of "
        f"views, {len(demonstrations)} demonstrations",
        f"{len(rooms)} rooms for training, {len(held_out)} for validation",
    ]


def training_lines(policy: Rocket2ForActionPrediction) -> list[str]:
    total: Counter[str] = Counter()
    trained: Counter[str] = Counter()
    for name, parameter in policy.named_parameters():
        part = name.partition(".")[0]
        total[part] += parameter.numel()
        trained[part] += parameter.numel() * parameter.requires_grad
    return [f"{part:18}{trained[part]:>15,} of {total[part]:,} weights" for part in total]


def step_lines(recipe: Rocket2Recipe, data: RecordedRooms, world_size: int) -> list[str]:
    settings, run = recipe.rocket2, recipe.run
    samples_per_pass, passes = split_batch(recipe, world_size)
    epochs = run.steps * run.batch_size * settings.chunks * settings.chunk_steps / len(data)
    return [
        f"{run.steps:,} of {run.batch_size} samples: {world_size} processes x {samples_per_pass} samples x {passes} "
        f"passes, each of up to {settings.chunks} chunks of {settings.chunk_steps} steps",
        f"only views in the first {min(settings.warmup_steps, run.steps):,}, then {settings.views_share:.0%} of the "
        "samples",
        f"at most {epochs:.1f} epochs of all frames",
    ]


def compute_lines(recipe: Rocket2Recipe, policy: Rocket2ForActionPrediction) -> list[str]:
    settings = recipe.rocket2
    fake = policy.config.fake_batch(1, settings.chunk_steps, settings.goals)
    batch = {key: value.to(META) for key, value in fake.items()}
    with FlopCounterMode(display=False) as counter:
        losses = policy(**batch).losses
        torch.stack(list(losses.values())).sum().backward()
    sample = counter.get_total_flops() * settings.chunks
    samples = recipe.run.steps * recipe.run.batch_size
    return [f"at most {sample / 1e9:.3g} GFLOP per sample, {samples * sample / 1e15:.3g} PFLOP in total"]
