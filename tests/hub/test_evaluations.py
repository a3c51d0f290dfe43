"""Tests of the evaluation results that cards show: benchmark results, rollout images, and errors of wrong reports."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rocket_hf.errors import UserError
from rocket_hf.hub_cards.facts import Provenance
from rocket_hf.publishing.policy_facts import (
    add_evaluations,
    parse_success_rate,
    read_benchmark_results,
    require_same_policy,
)
from rocket_hf.sims.libero_tasks import TASKS


def write_report(folder: Path, suite: str, tasks: dict[str, tuple[int, int]]) -> Path:
    """Write the parts of a report that are read for cards."""
    counts = {task: {"successes": successes, "episodes": episodes} for task, (successes, episodes) in tasks.items()}
    overall = {key: sum(values[key] for values in counts.values()) for key in ("successes", "episodes")}
    report: dict[str, Any] = {"suite": suite, "tasks": counts, "overall": overall, "policy": {"fingerprint": "abc"}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(report))
    return folder


def tasks_of(suite: str, count: int | None = None) -> dict[str, tuple[int, int]]:
    return {f"{suite}/{number}": (number, 10) for number in range(count or TASKS[suite])}


def test_each_complete_libero_suite_has_a_benchmark_result(tmp_path):
    tasks = tasks_of("libero_spatial") | tasks_of("libero_goal", 9) | tasks_of("libero_10")
    first, second = read_benchmark_results(write_report(tmp_path, "libero", tasks))
    assert {first.dataset_id, second.dataset_id} == {"HuggingFaceVLA/libero"}
    assert (first.task_id, first.evaluation.successes, first.evaluation.episodes) == ("libero_spatial", 45, 100)
    assert second.task_id == "libero_10"  # one task of libero_goal is missing


def test_suites_without_hub_dataset_have_no_benchmark_result(tmp_path):
    assert read_benchmark_results(write_report(tmp_path, "libero-plus", tasks_of("libero_goal"))) == []
    assert read_benchmark_results(write_report(tmp_path, "metaworld", {"reach-v3": (1, 2)})) == []


def test_reports_and_success_rates_are_added_to_provenance(tmp_path):
    without = write_report(tmp_path / "first", "metaworld", {"reach-v3": (1, 2)})
    report = write_report(tmp_path / "second", "libero", tasks_of("libero_goal"))
    (report / "rollouts").mkdir()
    Image.new("RGB", (30, 10)).save(report / "rollouts" / "success.png")
    provenance = Provenance("mit", None)
    add_evaluations(provenance, [without, report / "evaluation.json"], ["maze=9/10"])
    assert [entry.suite for entry in provenance.evaluations] == ["maze", "metaworld", "libero"]
    assert [result.task_id for result in provenance.benchmark_results] == ["libero_goal"]
    assert provenance.rollouts is not None and provenance.rollouts.failure is None
    assert provenance.rollouts.success == (report / "rollouts" / "success.png").read_bytes()


def test_unreadable_rollout_image_is_rejected(tmp_path):
    report = write_report(tmp_path, "metaworld", {"reach-v3": (1, 2)})
    (report / "rollouts").mkdir()
    (report / "rollouts" / "failure.png").write_text("no image")
    with pytest.raises(UserError, match=r"failure\.png is not a readable image"):
        add_evaluations(Provenance("mit", None), [report], [])


def test_report_of_another_policy_is_rejected(tmp_path):
    report = write_report(tmp_path, "metaworld", {"reach-v3": (1, 2)})
    require_same_policy("abc", [report])
    with pytest.raises(UserError, match="is of another policy than the one to publish"):
        require_same_policy("def", [report])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("maze", "--success takes SUITE=SUCCESSES/EPISODES"),
        ("maze=11/10", "11 of 10 episodes cannot have succeeded"),
        ("maze=0/0", "0 of 0 episodes cannot have succeeded"),
    ],
)
def test_wrong_success_rates_are_rejected(text, message):
    with pytest.raises(UserError, match=message):
        parse_success_rate(text)
