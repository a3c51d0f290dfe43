"""Success rates of a policy in simulated tasks, with 95 % intervals, and of two policies start by start.

    rocket-hf eval runs/rocket --env metaworld --tasks button-press-v3 --episodes 20 --out report
    rocket-hf eval runs/rocket2 --env vizdoom --episodes 200 --refresh 1,30,90 --out report

Episode k of a task starts from --seed + k, for every policy the same. Writes evaluation.json and evaluation.md, which
`rocket-hf publish --evaluation` takes for the card. No code from a policy's repository is run.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rocket_hf.commands import eval_rocket2 as eval_rocket2
from rocket_hf.errors import UserError

from .arguments import name_of, numbers, require_at_least_one

if TYPE_CHECKING:
    from rocket_hf.evaluation.report import Report

HELP = "success rates of a policy in simulated tasks"
ROCKET2 = "vizdoom"
# What only some worlds take, and what it is where it is not given.
OF_TASKS = {"tasks": None, "execute": None, "cameras": "", "image_size": 128, "protocol": "plain"}
OF_GOALS = {"refresh": [1, 30, 90], "temperature": 1.0}
EPISODES, SEED = 10, 100_000
MINECRAFT = (
    "minecraft is not here: it would need MineStudio with its engine's archive and Java, and a world with a table of "
    "actions like that of rocket_hf/sims/vizdoom/actions.py; --env vizdoom is the world for ROCKET-2 policies"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", metavar="POLICY", help="a run's folder, a checkpoint's, a policy's, or ID[@REVISION]")
    parser.add_argument(
        "--env",
        default="metaworld",
        metavar="SUITE",
        help="metaworld, libero, libero-plus, or vizdoom for ROCKET-2 (default: %(default)s)",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="names or groups: easy, hard, libero_spatial, libero_spatial/camera, all, ... (not of vizdoom)",
    )
    parser.add_argument(
        "--refresh",
        type=numbers,
        metavar="N,...",
        help="vizdoom: steps after which the goal is shown anew, each in a run of its own (default: 1,30,90)",
    )
    parser.add_argument("--temperature", type=float, metavar="T", help="vizdoom: of the choices (default: 1.0)")
    parser.add_argument("--episodes", type=int, metavar="N", help="of each task (default: 10; vizdoom: 200)")
    parser.add_argument("--against", metavar="OTHER", help="another policy, on the same starts")
    parser.add_argument("--execute", type=int, metavar="K", help="actions of a chunk between two looks (default: all)")
    parser.add_argument("--max-steps", type=int, metavar="N", help="of an episode (default: the benchmark's)")
    parser.add_argument("--seed", type=int, help="of the first start of a task (default: 100000; vizdoom: 5000000)")
    parser.add_argument("--cameras", metavar="POLICY=ENV,...", help="where their names differ")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="(default: 128)")
    parser.add_argument("--protocol", help="openvla: that family's pictures, states and gripper")
    parser.add_argument("--workers", type=int, default=2, help="processes of the simulator (default: %(default)s)")
    parser.add_argument("--parallel", type=int, default=8, help="environments at a time (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="of the policy (default: %(default)s)")
    parser.add_argument("--videos", type=Path, metavar="FOLDER", help="one video an episode; costs pictures")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the report (default: it is printed only)")


def run(arguments: argparse.Namespace) -> int:
    from transformers.utils import logging

    settle(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    report = eval_rocket2.evaluated(arguments) if arguments.env == ROCKET2 else evaluated(arguments)
    print(report.as_markdown(), end="")
    if arguments.out is not None:
        report.write(arguments.out)
        print(f"\nwritten    {arguments.out}")
    return 0


def settle(arguments: argparse.Namespace) -> None:
    """Refuses what is not for this world, by name, and gives what was left out."""
    from rocket_hf.sims.names import require_known
    from rocket_hf.sims.suites import SUITES

    if arguments.env == "minecraft":
        raise UserError(MINECRAFT)
    require_known("rocket_hf", "suite", arguments.env, (*SUITES, ROCKET2))
    own, others = (OF_GOALS, OF_TASKS) if arguments.env == ROCKET2 else (OF_TASKS, OF_GOALS)
    for name in others:
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is not for {arguments.env}: leave it out")
    defaults = eval_rocket2.DEFAULTS if arguments.env == ROCKET2 else {"episodes": EPISODES, "seed": SEED}
    for name, value in (own | defaults).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    require_positive(arguments)


def evaluated(arguments: argparse.Namespace) -> "Report":
    from rocket_hf.evaluation.report import Report
    from rocket_hf.sims.suites import chosen_tasks

    if arguments.tasks is None:
        raise UserError(f"{arguments.env} needs --tasks: names or groups of its tasks, or all")
    tasks = chosen_tasks(arguments.env, arguments.tasks)
    settings = read_settings(arguments)
    first = evaluate(arguments.policy, arguments, tasks, settings, "first")
    second = evaluate(arguments.against, arguments, tasks, settings, "second") if arguments.against else None
    return Report(arguments.env, first, second, told(arguments), run_with())


def require_positive(arguments: argparse.Namespace) -> None:
    require_at_least_one(arguments, "episodes", "max_steps", "image_size", "parallel")
    if arguments.workers < 0 or arguments.seed < 0:
        raise UserError("--workers and --seed must not be negative")


def read_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of every rollout, as `rollout` takes them."""
    from rocket_hf.evaluation.protocol import PROTOCOLS
    from rocket_hf.modeling.strict_config import nearest

    if arguments.protocol not in PROTOCOLS:
        raise UserError(f"there is no protocol {arguments.protocol!r}: {nearest(arguments.protocol, PROTOCOLS)}")
    same = ("image_size", "execute", "max_steps", "workers", "parallel", "device")
    return {name: getattr(arguments, name) for name in same} | {
        "first_seed": arguments.seed,
        "cameras": read_cameras(arguments.cameras),
        "protocol": PROTOCOLS[arguments.protocol],
    }


def read_cameras(text: str) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in text.split(",") if entry]
    for own, _, environments in pairs:
        if not own or not environments:
            raise UserError(f"--cameras takes POLICY=ENV,..., like front=corner2,wrist=gripperPOV, got {text!r}")
    return {own: environments for own, _, environments in pairs}


def evaluate(source: str, arguments: argparse.Namespace, tasks: list[str], settings: dict[str, Any], role: str) -> Any:
    from rocket_hf.evaluation.identity import fingerprint
    from rocket_hf.evaluation.report import Identity, Result
    from rocket_hf.evaluation.rollouts import rollout

    policy, processor, revision = load(source)
    identity = Identity(name_of(source), revision, fingerprint(policy, processor))
    videos = arguments.videos
    if videos is not None and arguments.against:
        videos = videos / role
    episodes = rollout(policy, processor, arguments.env, tasks, arguments.episodes, videos=videos, **settings)
    return Result(identity, episodes)


def load(source: str) -> tuple[Any, Any, str | None]:
    """The policy, its processor, and its commit if it came from the Hub. The classes are this package's own."""
    from rocket_hf.evaluation.trained_policy import find_origin, load_trained
    from rocket_hf.hub import POLICY_FILES, resolve

    resolved = resolve(source, POLICY_FILES)
    return *load_trained(find_origin(resolved.folder)), resolved.commit


def told(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that the numbers depend on."""
    names = ("episodes", "seed", "execute", "max_steps", "image_size", "cameras", "protocol")
    return {name: value for name in names if (value := getattr(arguments, name)) not in (None, "")}


def run_with() -> dict[str, str]:
    from rocket_hf.evaluation.identity import versions

    return versions()
