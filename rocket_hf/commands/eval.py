"""Measure success rates of a policy in simulated tasks, or its errors on the recorded actions of a dataset.

    rocket-hf eval runs/rocket --env metaworld --tasks button-press-v3 --episodes 20 --out report
    rocket-hf eval runs/rocket2 --env vizdoom --episodes 200 --refresh 1,30,90 --out report
    rocket-hf eval runs/rocket --tasks easy --perturb camera=0,5,10,20 --out perturbed
    rocket-hf eval runs/rocket --dataset you/robot-data --out report

Episode k of each task starts from seed --seed + k for every policy. The report (evaluation.json, evaluation.md and
images of one successful and one failed episode) can be put on a model card with `rocket-hf publish --evaluation`. No
code from a policy's repository is executed.

With --dataset, no robot or simulator is needed: the policy predicts actions for recorded observations (open loop), and
its mean absolute error per joint is printed beside three baselines: holding still, the mean action, and the actions
after the training frame with the nearest state. Episodes that the policy's run held out are evaluated; if the training
episodes are unknown, all are.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rocket_hf.errors import UserError

from . import eval_dataset, eval_rocket2
from .arguments import integer_list, parse_cameras, require_at_least_one, require_device, source_name

if TYPE_CHECKING:
    from rocket_hf.evaluation.episode_journal import EpisodeJournal
    from rocket_hf.evaluation.perturbation_report import PerturbationReport
    from rocket_hf.evaluation.report import EvaluationReport, EvaluationResult, PolicyIdentity
    from rocket_hf.evaluation.rollout_strips import RolloutStrips
    from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
    from rocket_hf.modeling.processing_rocket import RocketProcessor

HELP = "measure a policy in simulated tasks, or on the recorded actions of a dataset"
ROCKET2 = "vizdoom"
# Options of only some environments, with their defaults.
TASK_OPTIONS = {"tasks": None, "execute": None, "cameras": "", "image_size": 128, "protocol": "plain", "perturb": None}
ROLLOUT_OPTIONS = {"max_steps": None, "workers": 2, "videos": None, "against": None}
ROCKET2_OPTIONS = {"refresh": [1, 30, 90], "temperature": 1.0}
EPISODES, SEED = 10, 100_000
REPORTED_SETTINGS = ("episodes", "seed", "execute", "max_steps", "image_size", "cameras", "protocol")
ENVIRONMENT_HELP = (
    "metaworld, libero, libero-plus, or vizdoom for ROCKET-2 (default: metaworld); metaworld with settings: "
    "metaworld:SETTING=VALUE,..."
)
PERTURB_HELP = (
    "metaworld: success at each camera azimuth in degrees (camera=0,5,10,20) or object height in meters "
    "(heights=0,0.06,0.12), from the same starts"
)
MINECRAFT = (
    "minecraft is not supported: it would need MineStudio with its engine and Java, and an action table like that in "
    "rocket_hf/sims/vizdoom/actions.py; use --env vizdoom for ROCKET-2 policies"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("policy", metavar="POLICY", help="folder of a run, checkpoint or policy, or Hub id OWNER/NAME[@REVISION]")
    add("--env", metavar="ENVIRONMENT", help=ENVIRONMENT_HELP)
    add("--dataset", metavar="DATASET", help="folder or Hub id of a LeRobot dataset to evaluate on, instead of --env")
    add(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="names of tasks or groups: easy, hard, libero_spatial, libero_spatial/camera, all, ... (not for vizdoom)",
    )
    add(
        "--refresh",
        type=integer_list,
        metavar="N,...",
        help="vizdoom: numbers of steps after which the goal is shown again, each evaluated separately "
        "(default: 1,30,90)",
    )
    add("--temperature", type=float, metavar="T", help="vizdoom: sampling temperature of the actions (default: 1.0)")
    add(
        "--episodes",
        type=int,
        metavar="N",
        help="number of episodes per task (default: 10; vizdoom: 200), or of the dataset (default: all)",
    )
    add("--against", metavar="OTHER", help="second policy, evaluated on the same starts and compared")
    add("--perturb", metavar="SETTING=VALUE,...", help=PERTURB_HELP)
    add("--execute", type=int, metavar="K", help="number of actions executed of each chunk (default: all)")
    add("--max-steps", type=int, metavar="N", help="step limit of an episode (default: that of the benchmark)")
    add(
        "--seed",
        type=int,
        help="seed of each task's first episode; later episodes increment it (default: 100000; vizdoom: 5000000)",
    )
    add(
        "--cameras",
        metavar="POLICY=ENV,...",
        help="camera of the environment or dataset for each policy camera whose name differs",
    )
    add("--image-size", type=int, metavar="PIXELS", help="height and width of rendered images (default: 128)")
    add("--protocol", help="conversion of images, states and actions: plain or openvla (default: plain)")
    add("--workers", type=int, metavar="N", help="number of simulator processes (default: 2)")
    add(
        "--parallel",
        type=int,
        default=8,
        metavar="N",
        help="number of environments, or of recorded frames, in one batch of the policy (default: %(default)s)",
    )
    add("--device", default="cpu", help="torch device of the policy (default: %(default)s)")
    add("--videos", type=Path, metavar="FOLDER", help="folder for a video of each episode; rendering them takes time")
    add("--out", type=Path, metavar="FOLDER", help="folder for the report (default: the report is only printed)")


def run(arguments: argparse.Namespace) -> int:
    from transformers.utils import logging

    from rocket_hf.evaluation.episode_journal import JOURNAL
    from rocket_hf.files import require_writable_folder

    complete_arguments(arguments)
    for folder in (arguments.out, arguments.videos):
        if folder is not None:
            require_writable_folder(folder)  # now, so that a wrong path does not cost an evaluation
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    report: Any
    if arguments.dataset is not None:
        report = eval_dataset.evaluate_policy(arguments)
    elif arguments.env == ROCKET2:
        report = eval_rocket2.evaluate_policies(arguments)
    elif arguments.perturb is not None:
        report = evaluate_perturbed(arguments)
    else:
        report = evaluate_policies(arguments)
    print(report.as_markdown(), end="")
    if arguments.out is not None:
        report.write(arguments.out)
        (arguments.out / JOURNAL).unlink(missing_ok=True)
        print(f"\nreport written to {arguments.out}")
    return 0


def complete_arguments(arguments: argparse.Namespace) -> None:
    """Reject options that the environment does not have, and set the defaults of the others."""
    from rocket_hf.sims.settings import parse_environment_name

    if arguments.env == "minecraft":
        raise UserError(MINECRAFT)
    if arguments.dataset is not None:
        unused = {"env", *TASK_OPTIONS, *ROLLOUT_OPTIONS, *ROCKET2_OPTIONS} - set(eval_dataset.DEFAULTS)
        reject_options(arguments, "--dataset", sorted(unused))
        set_defaults(arguments, eval_dataset.DEFAULTS)
    else:
        set_defaults(arguments, {"env": "metaworld"} | ROLLOUT_OPTIONS)
        arguments.env = parse_environment_name(arguments.env).name
        is_rocket2 = arguments.env == ROCKET2
        own, others = (ROCKET2_OPTIONS, TASK_OPTIONS) if is_rocket2 else (TASK_OPTIONS, ROCKET2_OPTIONS)
        reject_options(arguments, arguments.env, others)
        defaults = eval_rocket2.DEFAULTS if is_rocket2 else {"episodes": EPISODES, "seed": SEED}
        set_defaults(arguments, own | defaults)
    if arguments.perturb is not None:
        reject_options(arguments, "--perturb", ("against", "videos"))
    require_valid_numbers(arguments)
    require_device(arguments.device)


def reject_options(arguments: argparse.Namespace, kind: str, names: Iterable[str]) -> None:
    for name in names:
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is not an option for {kind}: remove it")


def set_defaults(arguments: argparse.Namespace, defaults: dict[str, Any]) -> None:
    for name, value in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)


def require_valid_numbers(arguments: argparse.Namespace) -> None:
    require_at_least_one(arguments, "episodes", "max_steps", "image_size", "parallel")
    if (arguments.workers or 0) < 0 or arguments.seed < 0:
        raise UserError(f"--workers {arguments.workers} and --seed {arguments.seed} must not be negative")


def evaluate_policies(arguments: argparse.Namespace) -> "EvaluationReport":
    from rocket_hf.evaluation.identity import package_versions
    from rocket_hf.evaluation.report import EvaluationReport
    from rocket_hf.evaluation.rollout_strips import FOLDER, RolloutStrips

    tasks = selected_tasks(arguments, arguments.env)
    settings = rollout_settings(arguments)
    strips = RolloutStrips(tasks)
    first = evaluate(arguments.policy, arguments, tasks, settings, "first", strips)
    second = evaluate(arguments.against, arguments, tasks, settings, "second") if arguments.against else None
    if arguments.out is not None:
        strips.write(arguments.out / FOLDER)
    return EvaluationReport(arguments.env, first, second, reported_settings(arguments), package_versions())


def rollout_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `rollout` that are the same for both policies."""
    from rocket_hf.evaluation.protocol import PROTOCOLS
    from rocket_hf.modeling.strict_config import suggest_name

    if arguments.protocol not in PROTOCOLS:
        raise UserError(f"there is no protocol {arguments.protocol!r}: {suggest_name(arguments.protocol, PROTOCOLS)}")
    names = ("image_size", "execute", "max_steps", "workers", "parallel", "device")
    return {name: getattr(arguments, name) for name in names} | {
        "first_seed": arguments.seed,
        "cameras": parse_cameras(arguments.cameras),
        "protocol": PROTOCOLS[arguments.protocol],
    }


def evaluate(
    source: str,
    arguments: argparse.Namespace,
    tasks: list[str],
    settings: dict[str, Any],
    role: str,
    strips: "RolloutStrips | None" = None,
) -> "EvaluationResult":
    """Evaluate one policy; `role` names its folder of videos if there are two policies."""
    from rocket_hf.evaluation.report import EvaluationResult
    from rocket_hf.evaluation.rollouts import rollout

    policy, processor, identity = load_policy(source)
    videos = arguments.videos
    if videos is not None and arguments.against:
        videos = videos / role
    journal = open_journal(arguments, identity, arguments.env) if videos is None else None
    episodes = rollout(
        policy, processor, arguments.env, tasks, arguments.episodes,
        videos=videos, strips=strips, journal=journal, **settings,
    )  # fmt: skip
    return EvaluationResult(identity, episodes)


def evaluate_perturbed(arguments: argparse.Namespace) -> "PerturbationReport":
    """Evaluate a policy at each value of a perturbation, on the same starts."""
    from rocket_hf.evaluation.identity import package_versions
    from rocket_hf.evaluation.perturbation_report import PerturbationReport
    from rocket_hf.evaluation.rollouts import rollout
    from rocket_hf.sims.settings import parse_environment_name, parse_perturbation

    settings = parse_environment_name(arguments.env)
    perturbation = parse_perturbation(arguments.perturb, settings)
    environments = [environment.name for environment in perturbation.environments(settings)]
    tasks, *_ = [selected_tasks(arguments, environment) for environment in environments]  # each checks its setting
    options = rollout_settings(arguments)
    policy, processor, identity = load_policy(arguments.policy)
    episodes = []
    for environment in environments:
        journal = open_journal(arguments, identity, environment)
        episodes.append(rollout(policy, processor, environment, tasks, arguments.episodes, journal=journal, **options))
    reported = reported_settings(arguments)
    return PerturbationReport(settings, perturbation, identity, episodes, reported, package_versions())


def selected_tasks(arguments: argparse.Namespace, environment: str) -> list[str]:
    from rocket_hf.sims.suites import select_tasks

    if arguments.tasks is None:
        raise UserError(f"--env {arguments.env} needs --tasks: names of tasks or groups, or all")
    return select_tasks(environment, arguments.tasks)


def open_journal(
    arguments: argparse.Namespace, identity: "PolicyIdentity", environment: str
) -> "EpisodeJournal | None":
    """Open the journal of a policy in an environment; None if no report is written."""
    from rocket_hf.evaluation.episode_journal import JOURNAL, EpisodeJournal
    from rocket_hf.evaluation.identity import package_versions

    if arguments.out is None:
        return None
    dependencies = reported_settings(arguments) | {"episodes": None, "versions": package_versions()}
    return EpisodeJournal(arguments.out / JOURNAL, [identity.fingerprint, environment, dependencies])


def load_policy(source: str) -> tuple["RocketForActionPrediction", "RocketProcessor", "PolicyIdentity"]:
    """Load a policy with its processor and identity. The code is that of this package."""
    from rocket_hf.evaluation.identity import fingerprint
    from rocket_hf.evaluation.report import PolicyIdentity
    from rocket_hf.evaluation.trained_policy import find_trained_policy, load_trained_policy
    from rocket_hf.hub import POLICY_FILES, resolve

    resolved = resolve(source, POLICY_FILES)
    policy, processor = load_trained_policy(find_trained_policy(resolved.folder))
    return policy, processor, PolicyIdentity(source_name(source), resolved.commit, fingerprint(policy, processor))


def reported_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that affect the results, for the report."""
    return {name: value for name in REPORTED_SETTINGS if (value := getattr(arguments, name)) not in (None, "")}
