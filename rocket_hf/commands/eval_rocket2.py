"""Part of `rocket-hf eval` for ROCKET-2 policies in unseen rooms of ViZDoom.

Episode k is in the room with seed --seed + k. Its target is object k modulo 4, marked in a view from elsewhere in the
room. Random actions from the same starts are the baseline.
"""

import argparse
from typing import TYPE_CHECKING, Any

from rocket_hf.errors import UserError

from .arguments import source_name

if TYPE_CHECKING:
    from pathlib import Path

    from rocket_hf.evaluation.rocket2.journal import Rocket2Journal
    from rocket_hf.evaluation.rocket2.report import Rocket2EvaluationReport, Rocket2EvaluationResult
    from rocket_hf.evaluation.rocket2.simulator import Rocket2Reply, Rocket2Request
    from rocket_hf.evaluation.trained_policy import TrainedPolicySource
    from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
    from rocket_hf.sims.process_pool import SimulatorPool

DEFAULTS = {"episodes": 200, "seed": 5_000_000, "max_steps": 60}  # Rooms from seed 0 on are for training.
JOURNAL_SETTINGS = ("temperature", "max_steps", "device")
REPORTED_SETTINGS = ("episodes", "seed", "refresh", "temperature", "max_steps", "parallel", "device")


def evaluate_policies(arguments: argparse.Namespace) -> "Rocket2EvaluationReport":
    from rocket_hf.evaluation.identity import package_versions
    from rocket_hf.evaluation.rocket2.players import RandomPlayer
    from rocket_hf.evaluation.rocket2.report import RANDOM, Rocket2EvaluationReport
    from rocket_hf.evaluation.rocket2.rollouts import run_player
    from rocket_hf.evaluation.rocket2.simulator import Rocket2Simulator, episode_starts
    from rocket_hf.sims.process_pool import SimulatorPool
    from rocket_hf.sims.vizdoom.world import require_engine

    require_valid_options(arguments)
    require_engine()
    sources = {"first": arguments.policy} | ({"second": arguments.against} if arguments.against else {})
    policies = {role: load_policy(source) for role, source in sources.items()}
    starts, longest = episode_starts(arguments.episodes, arguments.seed), max(arguments.refresh)
    with SimulatorPool(Rocket2Simulator, min(arguments.workers, arguments.episodes)) as pool:
        results = {role: evaluate(role, source, *policies[role], pool, arguments) for role, source in sources.items()}
        journal = create_journal(arguments, RANDOM, longest)
        random = run_player(
            RandomPlayer(), pool, starts, refresh=longest, journal=journal, name=RANDOM, **run_settings(arguments)
        )
    settings = {name: getattr(arguments, name) for name in REPORTED_SETTINGS}
    return Rocket2EvaluationReport(results["first"], results.get("second"), random, settings, package_versions())


def require_valid_options(arguments: argparse.Namespace) -> None:
    from rocket_hf.sims.vizdoom.maps import make_room

    if any(steps < 1 for steps in arguments.refresh) or len(set(arguments.refresh)) < len(arguments.refresh):
        raise UserError(f"--refresh takes different numbers of steps, each at least 1, got {arguments.refresh}")
    if arguments.temperature < 0:
        raise UserError(f"--temperature must be 0 (the most probable choices) or positive, got {arguments.temperature}")
    make_room(arguments.seed + arguments.episodes - 1)  # raises if the last seed is too large


def run_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("max_steps", "parallel")}


def create_journal(arguments: argparse.Namespace, player: str, refresh: int) -> "Rocket2Journal | None":
    """Create the journal of a player, a fingerprint or a name. With videos, which are not stored, there is none."""
    from rocket_hf.evaluation.episode_journal import JOURNAL
    from rocket_hf.evaluation.identity import package_versions
    from rocket_hf.evaluation.rocket2.journal import Rocket2Journal

    if arguments.out is None or arguments.videos is not None:
        return None
    settings = {name: getattr(arguments, name) for name in JOURNAL_SETTINGS}
    return Rocket2Journal(arguments.out / JOURNAL, [player, refresh, settings, package_versions()])


def load_policy(source: str) -> tuple["Rocket2ForActionPrediction", str | None]:
    """Load a policy and, if it comes from the Hub, its commit. The code is that of this package."""
    from rocket_hf.evaluation.rocket2.players import require_fit
    from rocket_hf.evaluation.trained_policy import load_trained_rocket2
    from rocket_hf.hub import POLICY_FILES, resolve

    resolved = resolve(source, POLICY_FILES)
    policy = load_trained_rocket2(find_exported_policy(resolved.folder))
    require_fit(policy.config)
    return policy.eval(), resolved.commit


def find_exported_policy(folder: "Path") -> "TrainedPolicySource":
    """Find the exported policy of a run, or the policy in the folder itself, and require that it is a ROCKET-2."""
    from rocket_hf.checkpoint_files import read_json
    from rocket_hf.evaluation.trained_policy import find_trained_policy

    found = find_trained_policy(folder)
    if found.policy is None:
        raise UserError(f"the run in {folder} has not exported its policy yet: evaluate it when training has finished")
    kind = dict(read_json(found.policy / "config.json")).get("model_type")
    if kind != "rocket2":
        raise UserError(
            f"{folder} is not a ROCKET-2 policy but of type {kind!r}: evaluate it with --env metaworld, libero or "
            "libero-plus"
        )
    return found


def evaluate(
    role: str,
    source: str,
    policy: "Rocket2ForActionPrediction",
    revision: str | None,
    pool: "SimulatorPool[Rocket2Request, Rocket2Reply]",
    arguments: argparse.Namespace,
) -> "Rocket2EvaluationResult":
    """Run the policy with each refresh interval from the same starts, and write videos and strips."""
    from rocket_hf.evaluation.identity import rocket2_fingerprint, rocket2_fingerprint_with_heads
    from rocket_hf.evaluation.report import PolicyIdentity
    from rocket_hf.evaluation.rocket2.figures import VideoRecorder
    from rocket_hf.evaluation.rocket2.players import PolicyPlayer
    from rocket_hf.evaluation.rocket2.report import Rocket2EvaluationResult, describe_refresh
    from rocket_hf.evaluation.rocket2.rollouts import run_player
    from rocket_hf.evaluation.rocket2.simulator import episode_starts
    from rocket_hf.evaluation.rollout_strips import FOLDER

    identity = PolicyIdentity(source_name(source), revision, rocket2_fingerprint(policy))
    journal_name = rocket2_fingerprint_with_heads(policy)
    policy, rollouts = policy.to(arguments.device), {}
    starts, slots = episode_starts(arguments.episodes, arguments.seed), min(arguments.parallel, arguments.episodes)
    for refresh in arguments.refresh:
        part = f"{role}-{refresh}" if arguments.against else str(refresh)
        recorder = VideoRecorder(arguments.videos / f"every-{part}" if arguments.videos is not None else None)
        rollouts[refresh] = run_player(
            PolicyPlayer(policy, slots, arguments.temperature), pool, starts, refresh=refresh, on_episode_end=recorder,
            journal=create_journal(arguments, journal_name, refresh),
            name=f"{identity.name}, goal {describe_refresh(refresh)}", **run_settings(arguments),
        )  # fmt: skip
        if arguments.out is not None:
            title = f"{identity.name} in {arguments.env}, goal shown {describe_refresh(refresh)}"
            recorder.write_strip(arguments.out / f"strip-every-{part}.png", title)
            if role == "first" and refresh == max(arguments.refresh):
                recorder.write_first_outcomes(arguments.out / FOLDER)
    return Rocket2EvaluationResult(identity, rollouts)
