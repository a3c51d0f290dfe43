"""The part of `rocket-hf eval` that is after goals: a ROCKET-2 policy in unseen rooms of ViZDoom.

Episode k is in the room of seed --seed + k, after its object k modulo four, which is marked in a view from elsewhere in
the room. What chance does from the same starts is told beside it.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rocket_hf.errors import UserError

from .arguments import name_of

if TYPE_CHECKING:
    from rocket_hf.evaluation.rocket2.report import Result, Rocket2EvaluationReport
    from rocket_hf.evaluation.workers import Worlds
    from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction

DEFAULTS = {"episodes": 200, "seed": 5_000_000, "max_steps": 60}  # rooms from seed 0 on are for training
TOLD = ("episodes", "seed", "refresh", "temperature", "max_steps", "parallel", "device")


def evaluated(arguments: argparse.Namespace) -> "Rocket2EvaluationReport":
    from rocket_hf.evaluation.identity import versions
    from rocket_hf.evaluation.rocket2.environment import Rocket2Environment, starts
    from rocket_hf.evaluation.rocket2.players import Chance
    from rocket_hf.evaluation.rocket2.report import CHANCE, Rocket2EvaluationReport
    from rocket_hf.evaluation.rocket2.rollouts import run_player
    from rocket_hf.evaluation.workers import Worlds
    from rocket_hf.sims.vizdoom.world import require_engine

    require_own(arguments)
    require_engine()
    sources = {"first": arguments.policy} | ({"second": arguments.against} if arguments.against else {})
    policies = {role: load(source) for role, source in sources.items()}
    begins, rarest = starts(arguments.episodes, arguments.seed), max(arguments.refresh)
    with Worlds(Rocket2Environment, min(arguments.workers, arguments.episodes)) as worlds:
        results = {role: evaluate(role, source, *policies[role], worlds, arguments) for role, source in sources.items()}
        chance = run_player(Chance(), worlds, begins, refresh=rarest, name=CHANCE, **conditions(arguments))
    settings = {name: getattr(arguments, name) for name in TOLD}
    return Rocket2EvaluationReport(results["first"], results.get("second"), chance, settings, versions())


def require_own(arguments: argparse.Namespace) -> None:
    from rocket_hf.sims.vizdoom.maps import make_room

    if any(steps < 1 for steps in arguments.refresh) or len(set(arguments.refresh)) < len(arguments.refresh):
        raise UserError(f"--refresh takes different numbers of steps, each at least 1, got {arguments.refresh}")
    if arguments.temperature < 0:
        raise UserError(f"--temperature is 0 for the likeliest choices, or positive: got {arguments.temperature}")
    make_room(arguments.seed + arguments.episodes - 1)


def conditions(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("max_steps", "parallel")}


def load(source: str) -> tuple["Rocket2ForActionPrediction", str | None]:
    """The policy, and its commit if it came from the Hub. Its class is this package's own."""
    from rocket_hf.evaluation.rocket2.players import require_fit
    from rocket_hf.hub import POLICY_FILES, resolve
    from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction

    resolved = resolve(source, POLICY_FILES)
    policy = Rocket2ForActionPrediction.from_pretrained(policy_folder(resolved.folder))
    require_fit(policy.config)
    return policy.eval(), resolved.commit


def policy_folder(folder: Path) -> Path:
    """That of a run, or the folder itself."""
    from rocket_hf.evaluation.trained_policy import find_origin

    found = find_origin(folder).policy
    if found is None:
        raise UserError(f"{folder} has not ended and has no policy yet: let it end, and give its folder again")
    kind = json.loads((found / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind != "rocket2":
        raise UserError(f"{folder} is no ROCKET-2 policy but of type {kind!r}: --env vizdoom is for ROCKET-2")
    return found


def evaluate(
    role: str,
    source: str,
    policy: "Rocket2ForActionPrediction",
    revision: str | None,
    worlds: "Worlds",
    arguments: argparse.Namespace,
) -> "Result":
    """At each refresh, from the same starts."""
    from rocket_hf.evaluation.identity import rocket2_fingerprint
    from rocket_hf.evaluation.report import Identity
    from rocket_hf.evaluation.rocket2.environment import starts
    from rocket_hf.evaluation.rocket2.figures import FilmKeeper
    from rocket_hf.evaluation.rocket2.players import PolicyPlayer
    from rocket_hf.evaluation.rocket2.report import Result, shown
    from rocket_hf.evaluation.rocket2.rollouts import run_player

    identity = Identity(name_of(source), revision, rocket2_fingerprint(policy))
    policy, runs = policy.to(arguments.device), {}
    begins, places = starts(arguments.episodes, arguments.seed), min(arguments.parallel, arguments.episodes)
    for refresh in arguments.refresh:
        part = f"{role}-{refresh}" if arguments.against else str(refresh)
        films = FilmKeeper(arguments.videos / f"every-{part}" if arguments.videos is not None else None)
        runs[refresh] = run_player(
            PolicyPlayer(policy, places, arguments.temperature), worlds, begins, refresh=refresh, on_film=films,
            name=f"{identity.name}, goal {shown(refresh)}", **conditions(arguments),
        )  # fmt: skip
        if arguments.out is not None:
            arguments.out.mkdir(parents=True, exist_ok=True)
            title = f"{identity.name} in {arguments.env}, the goal shown {shown(refresh)}"
            films.write_strip(arguments.out / f"strip-every-{part}.png", title)
    return Result(identity, runs)
