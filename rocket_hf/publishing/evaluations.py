"""Evaluation results for cards, read from the reports that `rocket-hf eval --out FOLDER` writes.

A report folder may contain `rollouts/success.png` and `rollouts/failure.png`, image strips of one successful and one
failed episode; the card shows them.
"""

import re
from pathlib import Path
from typing import Any

from PIL import Image

from rocket_hf.errors import UserError
from rocket_hf.evaluation.report import read_evaluation, read_report
from rocket_hf.evaluation.rollout_strips import FILES as ROLLOUT_FILES
from rocket_hf.evaluation.rollout_strips import FOLDER as ROLLOUT_FOLDER
from rocket_hf.hub_cards.facts import (
    BenchmarkResult,
    CardError,
    Evaluation,
    Provenance,
    Rocket2Evaluation,
    Rocket2Rates,
    RolloutImages,
)
from rocket_hf.sims.libero_tasks import TASKS as LIBERO_TASKS

RANDOM_PLAYER = "random"
# LIBERO is the only suite whose benchmark has a known dataset on the Hub, so entries of `.eval_results/` are written
# for it alone. Its task ids are the names of LIBERO's suites. The Hub shows an entry on a leaderboard only if the
# dataset is registered as a benchmark.
LIBERO_SUITE, LIBERO_DATASET = "libero", "HuggingFaceVLA/libero"


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
