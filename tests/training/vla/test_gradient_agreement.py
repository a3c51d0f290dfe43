"""Gradient agreement, measured_run during training and for a finished run, in one process and in two."""

import json
import math

import pytest
import torch

from rocket_hf.analysis.restored_run import restore_run
from rocket_hf.commands import main as rocket_hf
from rocket_hf.training.vla.gradient_agreement import loss_cosines
from rocket_hf.training.vla.loss_gradients import agreement_metrics
from rocket_hf.training.vla.shared_weights import shared_weights

from ..conftest import checkpoint_tensors, run_ranks, run_training, set_options, step_records

pytestmark = pytest.mark.needs_lerobot

METRICS = {"agreement/pairs", "agreement/conflicting", "agreement/action"}
CHANGES = {"run__steps": 6, "run__save_every": 3, "run__keep": 9, "lora__dropout": 0.2, "run__batch_size": 8}


@pytest.fixture(scope="module")
def measured_run(tiny_run, tmp_path_factory):
    """A run with dropout that measures gradient agreement in every third step."""
    out = tmp_path_factory.mktemp("runs") / "measured_run"
    tiny_run(out, analysis__gradient_agreement_every=3, **CHANGES)
    return out


def test_journal_contains_the_agreement_of_every_third_step(measured_run):
    for line in step_records(measured_run):
        metrics = METRICS & line.keys()
        assert metrics == (METRICS if line["step"] % 3 == 0 else set())
        assert ("seconds/agreement" in line) == bool(metrics)
        assert all(math.isfinite(line[name]) for name in metrics)
        assert all(-1 <= line[name] <= 1 for name in metrics)


def test_measurement_does_not_change_the_run(measured_run, tiny_run, tmp_path):
    """All tensors are equal, although dropout and the measurement draw from the same random state."""
    tiny_run(tmp_path / "unmeasured", **CHANGES)
    for name in ("model", "optimizer", "random"):
        unmeasured, ours = (
            checkpoint_tensors(tmp_path / "unmeasured", 6, name),
            checkpoint_tensors(measured_run, 6, name),
        )
        assert unmeasured.keys() == ours.keys() and all(torch.equal(unmeasured[key], ours[key]) for key in unmeasured)
    unmeasured, ours = step_records(tmp_path / "unmeasured"), step_records(measured_run)
    assert [line["loss"] for line in unmeasured] == [line["loss"] for line in ours]


def test_two_ranks_measure_the_same_agreement_as_one(tiny_run, policies, image_dataset, teacher, tmp_path):
    changes = CHANGES | {"lora__dropout": 0.0, "analysis__gradient_agreement_every": 3}
    tiny_run(tmp_path / "alone", **changes)
    arguments = ["--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", image_dataset, "--teacher", teacher]
    assert run_ranks(2, tmp_path / "two", *arguments, *set_options(**changes)) == [0, 0], (
        tmp_path / "ranks.txt"
    ).read_text()
    for alone, two in zip(step_records(tmp_path / "alone"), step_records(tmp_path / "two"), strict=True):
        for name in METRICS & alone.keys():
            assert two[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-4), name


def test_finished_run_is_analyzed_with_its_own_alignment_head(measured_run, tmp_path, capsys):
    arguments = [
        "analyze",
        "gradients",
        str(measured_run),
        "--samples",
        "24",
        "--batch-size",
        "4",
        "--out",
        str(tmp_path),
    ]
    assert rocket_hf(arguments) == 0
    output = capsys.readouterr().out
    report = json.loads((tmp_path / "gradients.json").read_text())
    assert report["step"] == 6 and report["widths"] == [6, 19, 32] and report["projectors"] == 1
    assert f"{report['metrics']['pairs']['mean']:+.3f}" in output
    assert (tmp_path / "gradients.png").exists() and (tmp_path / "gradients.csv").exists()

    restored = restore_run(measured_run, torch.device("cpu"))
    saved = checkpoint_tensors(measured_run, 6)
    for name, weight in restored.policy.named_parameters():
        assert not weight.requires_grad or torch.equal(weight, saved[name]), name
    weights = shared_weights(restored.policy, None)
    assert report["parameters"] == {name: weight.numel() for name, weight in weights.items()}
    assert all(".layers.0." in name and ".lora_" in name for name in weights)
    tables = [loss_cosines(restored.policy, *pair, weights)[1] for pair in restored.batches(24, 4)]
    metrics = agreement_metrics(torch.stack(tables))
    for name, interval in report["metrics"].items():
        assert interval["mean"] == pytest.approx(metrics[name].mean().item(), abs=1e-5)
        assert interval["low"] <= interval["mean"] <= interval["high"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alignment": None, "analysis__gradient_agreement_every": 2}, "this recipe aligns none"),
        ({"analysis__gradient_agreement_every": -1}, "must be at least 0"),
        ({"analysis__gradient_agreement_every": 2, "analysis__parameters": "nothing"}, "begins with nothing"),
        (
            {"analysis__gradient_agreement_every": 2, "alignment__student_layers": [0, 1, 2]},
            "the first aligned layer is the embeddings",
        ),
    ],
)
def test_impossible_measurements_are_refused_before_training(
    changes, message, policies, image_dataset, teacher, tmp_path
):
    outcome = run_training(
        "--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", image_dataset, "--teacher", teacher,
        "--out", tmp_path / "run", *set_options(**changes),
    )  # fmt: skip
    assert outcome.code == 2 and len(outcome.stderr.splitlines()) == 1 and message in outcome.stderr
    assert not (tmp_path / "run").exists()


def test_measurement_with_sharded_gradients_is_refused(policies, image_dataset, teacher, tmp_path):
    arguments = ["--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", image_dataset, "--teacher", teacher]
    words = set_options(analysis__gradient_agreement_every=2)
    assert run_ranks(1, tmp_path / "run", *arguments, *words, ACCELERATE_USE_FSDP="true") == [2]
    assert "but FSDP2 and DeepSpeed shard them" in (tmp_path / "ranks.txt").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--samples", "4"], "at least 2 batches"), (["--parameters", "policy.none"], "begins with policy.none")],
)
def test_invalid_analysis_options_are_refused(measured_run, options, message, tmp_path, capsys):
    assert (
        rocket_hf(["analyze", "gradients", str(measured_run), "--batch-size", "4", "--out", str(tmp_path), *options])
        == 2
    )
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and message in error


def test_analysis_of_a_run_without_alignment_is_refused(tiny_run, tmp_path, capsys):
    tiny_run(tmp_path / "unmeasured", alignment=None, run__steps=1)
    assert rocket_hf(["analyze", "gradients", str(tmp_path / "unmeasured")]) == 2
    assert "was trained without alignment" in capsys.readouterr().err
