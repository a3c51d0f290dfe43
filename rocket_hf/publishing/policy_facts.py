"""Facts about a policy for its checks and its card: its kind, its size and robot, and the results of its evaluations.

The results are read from the reports that `rocket-hf eval --out FOLDER` writes. A report folder may contain
`rollouts/success.png` and `rollouts/failure.png`, image strips of one successful and one failed episode.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
from PIL import Image

from rocket_hf.checkpoint_files import read_json_object
from rocket_hf.errors import UserError
from rocket_hf.evaluation.report import read_evaluation, read_report
from rocket_hf.evaluation.rollout_strips import FILES as ROLLOUT_FILES
from rocket_hf.evaluation.rollout_strips import FOLDER as ROLLOUT_FOLDER
from rocket_hf.export.policy_folder import LEROBOT_FILES
from rocket_hf.foreign_code import MODEL_CLASSES, PROCESSOR_CLASSES, ROCKET2_CLASSES
from rocket_hf.hub_cards.facts import (
    Artifact,
    BenchmarkResult,
    CardError,
    Evaluation,
    Provenance,
    RobotFacts,
    Rocket2Artifact,
    Rocket2Evaluation,
    Rocket2Rates,
    RolloutImages,
)
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.configuration_rocket2 import INTERACTIONS, Rocket2Config
from rocket_hf.modeling.modeling_rocket import ALIGNMENT_HEAD_PREFIX, RocketForActionPrediction
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.modeling.rocket2_self_test import Rocket2SelfTest, Rocket2SelfTestReport, read_rocket2_self_test
from rocket_hf.modeling.self_test import SelfTest, SelfTestReport, library_versions, read_self_test
from rocket_hf.sims.libero_tasks import TASKS as LIBERO_TASKS

PROCESSOR_FILES = (
    "processor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
RANDOM_PLAYER = "random"
# LIBERO is the only suite whose benchmark has a known dataset on the Hub, so entries of `.eval_results/` are written
# for it alone. Its task ids are the names of LIBERO's suites. The Hub shows an entry on a leaderboard only if the
# dataset is registered as a benchmark.
LIBERO_SUITE, LIBERO_DATASET = "libero", "HuggingFaceVLA/libero"


# Kinds of policies


@dataclass(frozen=True)
class PolicyKind:
    """Classes and files of one kind of policy."""

    model: type[Any]
    code: dict[str, str]  # value of auto_map
    extra_files: tuple[str, ...]  # names allowed besides weights, code, self-test and card
    has_processor: bool
    requires_base: bool  # whether every policy of this kind was trained from another model
    read_self_test: Callable[[Path], SelfTest | Rocket2SelfTest]
    report: Callable[..., SelfTestReport | Rocket2SelfTestReport]


VLA = PolicyKind(
    model=RocketForActionPrediction,
    code=MODEL_CLASSES | PROCESSOR_CLASSES,
    extra_files=(*PROCESSOR_FILES, *LEROBOT_FILES),
    has_processor=True,
    requires_base=True,
    read_self_test=read_self_test,
    report=SelfTestReport,
)
ROCKET2 = PolicyKind(
    model=Rocket2ForActionPrediction,
    code=ROCKET2_CLASSES,
    extra_files=(),
    has_processor=False,
    requires_base=False,
    read_self_test=read_rocket2_self_test,
    report=Rocket2SelfTestReport,
)
POLICY_KINDS = {RocketConfig.model_type: VLA, Rocket2Config.model_type: ROCKET2}


def read_policy_kind(folder: Path) -> PolicyKind:
    path = folder / "config.json"
    model_type = read_json_object(path, fix="export the policy again").get("model_type")
    if model_type not in POLICY_KINDS:
        raise UserError(f"{path} has the model type {model_type!r}: give the folder of a VLA or ROCKET-2 policy")
    return POLICY_KINDS[model_type]


# Sizes and robot of a policy


def policy_artifact(
    policy: RocketForActionPrediction, processor: RocketProcessor, repo: str, revision: str, test: SelfTest
) -> Artifact:
    return Artifact(
        repo=repo,
        revision=revision,
        backbone=backbone_name(policy.config),
        parameters=sum(parameter.numel() for parameter in policy.parameters()),
        dtype=str(policy.dtype).removeprefix("torch."),
        robot=robot_facts(policy.config, processor),
        versions=test.versions,
        tolerances=test.tolerances,
        image_effect=test.image_effect,
    )


def adapter_artifact(
    model: RocketForActionPrediction, processor: RocketProcessor, repo: str, revision: str
) -> Artifact:
    trained = [
        weight
        for name, weight in model.named_parameters()
        if weight.requires_grad and ALIGNMENT_HEAD_PREFIX not in name
    ]
    return Artifact(
        repo=repo,
        revision=revision,
        backbone=backbone_name(model.config),
        parameters=sum(weight.numel() for weight in trained),
        dtype="float32",
        robot=robot_facts(model.config, processor),
        versions=library_versions() | {"peft": peft.__version__},
    )


def rocket2_artifact(
    policy: Rocket2ForActionPrediction, repo: str, revision: str, test: Rocket2SelfTest
) -> Rocket2Artifact:
    config = policy.config
    return Rocket2Artifact(
        repo=repo,
        revision=revision,
        parameters=sum(parameter.numel() for parameter in policy.parameters()),
        dtype=str(policy.dtype).removeprefix("torch."),
        image_size=tuple(config.image_size),
        actions=[(*factor, rest) for factor, rest in zip(config.factors.items(), config.rest_action, strict=True)],
        minecraft=config.action_space == "minecraft",
        interactions={name: number for name, number in INTERACTIONS.items() if number < config.interactions},
        window_steps=config.window_steps,
        heads=list(config.auxiliary_heads),
        versions=test.versions,
        tolerances=test.tolerances,
        effects=test.effects,
    )


def backbone_name(config: RocketConfig) -> str:
    policy = config.policy_config.to_dict()
    return policy.get("variant", policy["model_type"].removeprefix("rocket_"))


def robot_facts(config: RocketConfig, processor: RocketProcessor) -> RobotFacts:
    return RobotFacts(
        cameras=list(config.cameras),
        image_size=processor.image_size,
        resize=processor.resize,
        state_dim=config.state_dim,
        action_dim=config.action_dim,
        chunk_size=config.chunk_size,
        state_normalization=processor.state_normalization,
        action_normalization=processor.action_normalization,
        state_names=list(config.state_names) if config.state_names else None,
        action_names=list(config.action_names) if config.action_names else None,
        fps=config.fps,
        example_task=config.example_task,
    )


# Results of evaluations


def add_evaluations(provenance: Provenance, reports: list[Path], success_rates: list[str]) -> None:
    """Add evaluation reports, and success rates given as "SUITE=SUCCESSES/EPISODES", to a policy's provenance."""
    provenance.evaluations += [parse_success_rate(text) for text in success_rates]
    provenance.evaluations += [read_evaluation(path)[0] for path in reports]
    provenance.benchmark_results += [result for path in reports for result in read_benchmark_results(path)]
    for path in reports:
        provenance.rollouts = provenance.rollouts or read_rollout_images(path)


def require_same_policy(fingerprint: str, reports: list[Path]) -> None:
    """Raise if a report belongs to another policy than the one with this fingerprint."""
    for path in reports:
        if read_evaluation(path)[1] != fingerprint:
            raise UserError(
                f"the report {path} is of another policy than the one to publish: evaluate this policy with "
                "`rocket-hf eval`"
            )


def parse_success_rate(text: str) -> Evaluation:
    match = re.fullmatch(r"(.+)=(\d+)/(\d+)", text)
    if match is None:
        raise UserError(f"--success takes SUITE=SUCCESSES/EPISODES, such as libero_spatial=48/50, got {text!r}")
    try:
        return Evaluation(match[1], int(match[2]), int(match[3]))
    except CardError as error:
        raise UserError(f"--success {error}: give at most as many successes as episodes") from error


def read_benchmark_results(path: Path) -> list[BenchmarkResult]:
    """Return a result for each LIBERO suite of a report, if all tasks of that suite were evaluated."""
    values = read_report(path)
    if values.get("suite") != LIBERO_SUITE:
        return []
    results = []
    for suite, count in LIBERO_TASKS.items():
        tasks = [counts for task, counts in values["tasks"].items() if task.startswith(f"{suite}/")]
        if len(tasks) == count:
            successes, episodes = (sum(counts[key] for counts in tasks) for key in ("successes", "episodes"))
            results.append(BenchmarkResult(LIBERO_DATASET, suite, Evaluation(suite, successes, episodes)))
    return results


def read_rollout_images(path: Path) -> RolloutImages | None:
    """Return the image strips of a report folder; None if it has none."""
    folder = (path if path.is_dir() else path.parent) / ROLLOUT_FOLDER
    images = RolloutImages(read_image(folder / ROLLOUT_FILES[True]), read_image(folder / ROLLOUT_FILES[False]))
    return images if images.success or images.failure else None


def read_image(path: Path) -> bytes | None:
    """Return the bytes of a PNG file after checking that it can be decoded; None if there is no file."""
    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            image.load()
        return path.read_bytes()
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable image ({error}): run `rocket-hf eval` again") from error


def read_rocket2_evaluation(path: Path) -> Rocket2Evaluation:
    """Read a report of `rocket-hf eval --env vizdoom`: rates at each goal refresh, and of the random player."""
    values = read_report(path)
    try:
        rates = [
            read_rates(f"every {steps} steps" if steps != "1" else "at every step", "this policy", counts)
            for steps, counts in values["refreshes"].items()
        ]
        rates.append(read_rates("", RANDOM_PLAYER, values[RANDOM_PLAYER]))
        return Rocket2Evaluation(values["suite"], values["settings"].get("max_steps"), rates)
    except (KeyError, TypeError, AttributeError, CardError) as error:
        raise UserError(
            f"{path} is not a report of `rocket-hf eval --env vizdoom` ({error!r}): run that command again"
        ) from error


def read_rates(goal_refresh: str, player: str, counts: dict[str, Any]) -> Rocket2Rates:
    def rate(event: str) -> Evaluation:
        return Evaluation(f"{player} {goal_refresh}".strip(), counts[event]["count"], counts[event]["episodes"])

    return Rocket2Rates(goal_refresh, player, rate("target"), rate("wrong"))
