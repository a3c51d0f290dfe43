"""Part of `rocket-hf eval` for recorded datasets: errors of a policy's actions beside those of simple baselines."""

import argparse
from typing import TYPE_CHECKING, Any

from .arguments import source_name

if TYPE_CHECKING:
    from rocket_hf.evaluation.open_loop import EpisodeSplit
    from rocket_hf.evaluation.open_loop_report import OpenLoopReport
    from rocket_hf.training.data.lerobot_data import RobotDataset

# Options of the evaluation on a dataset, with their defaults.
DEFAULTS: dict[str, Any] = {"execute": None, "cameras": "", "seed": 0}


def evaluate_policy(arguments: argparse.Namespace) -> "OpenLoopReport":
    from rocket_hf.evaluation.identity import fingerprint, package_versions
    from rocket_hf.evaluation.open_loop import (
        OpenLoopSettings,
        check_rate,
        choose_episodes,
        evaluate_open_loop,
        open_dataset,
    )
    from rocket_hf.evaluation.open_loop_report import OpenLoopReport
    from rocket_hf.evaluation.report import PolicyIdentity
    from rocket_hf.evaluation.trained_policy import find_trained_policy, load_trained_policy
    from rocket_hf.hub import POLICY_FILES, resolve

    from .arguments import parse_cameras

    resolved = resolve(arguments.policy, POLICY_FILES)
    source = find_trained_policy(resolved.folder)
    policy, processor = load_trained_policy(source)
    data = open_dataset(source, policy.config, arguments.dataset, parse_cameras(arguments.cameras))
    check_rate(policy.config.fps, data)
    split = choose_episodes(source, data, arguments.dataset, arguments.episodes)
    identity = PolicyIdentity(source_name(arguments.policy), resolved.commit, fingerprint(policy, processor))
    settings = OpenLoopSettings(arguments.execute, arguments.parallel, arguments.seed, arguments.device)
    episodes = list(evaluate_open_loop(policy, processor, data, split, settings))
    names = policy.config.action_names or data.action_names or [f"action {n}" for n in range(policy.config.action_dim)]
    joints = [name for name, has in zip(names, data.action_mask.tolist(), strict=True) if has]
    described = describe_settings(arguments, data, split, policy.config.chunk_size)
    return OpenLoopReport(identity, data.id, joints, episodes, described, package_versions())


def describe_settings(
    arguments: argparse.Namespace, data: "RobotDataset", split: "EpisodeSplit", chunk_size: int
) -> dict[str, Any]:
    from rocket_hf.training.data.baselines import ActionBaselines

    evaluated = ", ".join(map(str, split.evaluated))
    if split.training is not None:
        origin, baselines = "held out by the policy's run", "the run's training episodes"
    else:
        origin, baselines = "the policy's training episodes are unknown", "all other episodes of the dataset"
    hold_still = ActionBaselines(data, split.training or data.episodes).hold_still_action
    return {
        "dataset": f"{data.id}@{data.revision}, {data.fps:g} Hz",
        "episodes": f"{evaluated} ({origin})",
        "baselines": f"from {baselines}; hold still repeats {hold_still}",
        "actions": f"the first {arguments.execute or chunk_size} of each chunk of {chunk_size}",
        "seed": arguments.seed,
    }
