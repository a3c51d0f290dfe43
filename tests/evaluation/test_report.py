"""Evaluation reports, and the values that model cards read from them."""

import json

import pytest

from rocket_hf.errors import UserError
from rocket_hf.evaluation.identity import fingerprint
from rocket_hf.evaluation.report import (
    REPORT,
    TEXT,
    EvaluationReport,
    EvaluationResult,
    PolicyIdentity,
    read_evaluation,
)
from rocket_hf.evaluation.rollouts import EpisodeResult
from rocket_hf.evaluation.statistics import wilson_interval
from rocket_hf.evaluation.trained_policy import find_trained_policy, load_trained_policy
from rocket_hf.export.policy_folder import export_policy

from .conftest import tiny_policy

TASKS = ("open", "close")


def result(name, successes):
    """Return ten episodes of each task, of which the first ones succeed."""
    episodes = [
        EpisodeResult(task, 100 + number, number < count, 30, 200)
        for task, count in zip(TASKS, successes, strict=True)
        for number in range(10)
    ]
    return EvaluationResult(PolicyIdentity(name, None, f"hash of {name}"), episodes)


@pytest.fixture
def report():
    return EvaluationReport(
        "metaworld", result("rocket", (9, 7)), result("none", (3, 6)), {"seed": 100}, {"torch": "2.11"}
    )


def test_json_has_counts_of_tasks_suite_and_pairs(report, tmp_path):
    report.write(tmp_path / "new")
    values = json.loads((tmp_path / "new" / REPORT).read_text())
    assert values["tasks"]["open"]["successes"] == 9
    assert values["overall"] == values["overall"] | {"successes": 16, "episodes": 20, "rate": 0.8}
    assert values["overall"]["interval"] == pytest.approx(wilson_interval(16, 20))
    assert values["against"]["overall"]["successes"] == 9
    comparison = values["comparison"]
    assert [comparison[key] for key in ("both", "only_first", "only_second", "neither")] == [9, 7, 0, 4]
    assert comparison["difference"] == pytest.approx(0.35)
    assert comparison["tasks"]["close"]["only_first"] == 1
    assert len(values["episodes"]) == 20


def test_markdown_has_rates_and_a_sentence_about_the_difference(report, tmp_path):
    report.write(tmp_path)
    text = (tmp_path / TEXT).read_text()
    assert "| open | 9 of 10: 90.0 % (59.6 to 98.2) | 3 of 10: 30.0 % (10.8 to 60.3) |" in text
    assert "| **all** | 16 of 20: 80.0 %" in text
    assert "the interval of the difference does not contain zero, rocket is better" in text
    assert "run with torch 2.11" in text and "- seed: 100" in text
    same = EvaluationReport("metaworld", report.first, report.first, {}, {})
    assert "contains zero, so these episodes do not show which policy is better" in same.as_markdown()


def test_model_card_reads_suite_rate_and_fingerprint(report, tmp_path):
    report.write(tmp_path)
    evaluation, policy = read_evaluation(tmp_path)
    assert (evaluation.suite, evaluation.successes, evaluation.episodes) == ("metaworld", 16, 20)
    assert read_evaluation(tmp_path / REPORT) == (evaluation, policy)
    assert policy == "hash of rocket"
    (tmp_path / REPORT).write_text("{}")
    with pytest.raises(ValueError, match="is not a report of `rocket-hf eval`"):
        read_evaluation(tmp_path)
    (tmp_path / REPORT).write_text("{")
    with pytest.raises(UserError, match="is not a report of `rocket-hf eval`"):
        read_evaluation(tmp_path)
    with pytest.raises(UserError, match=r"cannot read the report .*missing \(No such file or directory\)"):
        read_evaluation(tmp_path / "missing")


def test_fingerprint_covers_weights_and_statistics(tmp_path):
    policy, processor = tiny_policy()
    first = fingerprint(policy, processor)
    export_policy(policy, processor, tmp_path / "policy")
    exported = load_trained_policy(find_trained_policy(tmp_path / "policy"))
    assert fingerprint(*exported) == first
    processor.statistics["action"]["mean"][0] += 0.1
    assert fingerprint(policy, processor) != first
    next(exported[0].parameters()).data.view(-1)[0] += 1e-3
    assert fingerprint(*exported) != first
