"""The agreement of gradients, live and of a run that has been: it disturbs nothing, and ranks say what one would."""

import json
import math

import pytest
import torch

from rocket_hf.analysis.restored_run import restore_run
from rocket_hf.commands import main as rocket_hf
from rocket_hf.training.vla.gradient_agreement import loss_cosines
from rocket_hf.training.vla.loss_gradients import figures_of
from rocket_hf.training.vla.shared_weights import shared_weights

from ..conftest import checkpoint, run_ranks, run_training, settings, steps_of

pytestmark = pytest.mark.needs_lerobot

NAMES = {"agreement/pairs", "agreement/conflicting", "agreement/action"}
CHANGES = {"run__steps": 6, "run__save_every": 3, "run__keep": 9, "lora__dropout": 0.2, "run__batch_size": 8}


@pytest.fixture(scope="module")
def measured(tiny_run, tmp_path_factory):
    """A run with dropout, whose agreement is measured after every third step."""
    out = tmp_path_factory.mktemp("runs") / "measured"
    tiny_run(out, analysis__gradient_agreement_every=3, **CHANGES)
    return out


def test_what_is_measured_is_in_the_journal(measured):
    for line in steps_of(measured):
        there = NAMES & line.keys()
        assert there == (NAMES if line["step"] % 3 == 0 else set())
        assert ("seconds/agreement" in line) == bool(there)
        assert all(math.isfinite(line[name]) for name in there)
        assert all(-1 <= line[name] <= 1 for name in there)


def test_a_measured_run_is_the_same_run(measured, tiny_run, tmp_path):
    """Bit for bit, though dropout draws from the random state that the measurement draws from too."""
    tiny_run(tmp_path / "plain", **CHANGES)
    for name in ("model", "optimizer", "random"):
        plain, mine = checkpoint(tmp_path / "plain", 6, name), checkpoint(measured, 6, name)
        assert plain.keys() == mine.keys() and all(torch.equal(plain[key], mine[key]) for key in plain)
    plain, mine = steps_of(tmp_path / "plain"), steps_of(measured)
    assert [line["loss"] for line in plain] == [line["loss"] for line in mine]


def test_two_ranks_measure_what_one_does(tiny_run, policies, stored, teacher, tmp_path):
    changes = CHANGES | {"lora__dropout": 0.0, "analysis__gradient_agreement_every": 3}
    tiny_run(tmp_path / "alone", **changes)
    given = ["--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", stored, "--teacher", teacher]
    assert run_ranks(2, tmp_path / "two", *given, *settings(**changes)) == [0, 0], (tmp_path / "ranks.txt").read_text()
    for alone, two in zip(steps_of(tmp_path / "alone"), steps_of(tmp_path / "two"), strict=True):
        for name in NAMES & alone.keys():
            assert two[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-4), name


def test_a_run_is_analyzed_with_its_own_head(measured, tmp_path, capsys):
    arguments = ["analyze", "gradients", str(measured), "--samples", "24", "--batch-size", "4", "--out", str(tmp_path)]
    assert rocket_hf(arguments) == 0
    said = capsys.readouterr().out
    written = json.loads((tmp_path / "gradients.json").read_text())
    assert written["step"] == 6 and written["widths"] == [6, 19, 32] and written["projectors"] == 1
    assert f"{written['figures']['pairs']['mean']:+.3f}" in said
    assert (tmp_path / "gradients.png").exists() and (tmp_path / "gradients.csv").exists()

    reopened = restore_run(measured, torch.device("cpu"))
    saved = checkpoint(measured, 6)
    for name, weight in reopened.policy.named_parameters():
        assert not weight.requires_grad or torch.equal(weight, saved[name]), name
    weights = shared_weights(reopened.policy, None)
    assert written["parameters"] == {name: weight.numel() for name, weight in weights.items()}
    assert all(".layers.0." in name and ".lora_" in name for name in weights)
    tables = [loss_cosines(reopened.policy, *pair, weights)[1] for pair in reopened.batches(24, 4)]
    figures = figures_of(torch.stack(tables))
    for name, interval in written["figures"].items():
        assert interval["mean"] == pytest.approx(figures[name].mean().item(), abs=1e-5)
        assert interval["low"] <= interval["mean"] <= interval["high"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"alignment": None, "analysis__gradient_agreement_every": 2}, "this recipe aligns none"),
        ({"analysis__gradient_agreement_every": -1}, "must be at least 0"),
        ({"analysis__gradient_agreement_every": 2, "analysis__parameters": "nothing"}, "begins with nothing"),
        ({"analysis__gradient_agreement_every": 2, "alignment__student_layers": [0, 1, 2]}, "are the embeddings"),
    ],
)
def test_what_cannot_be_measured_is_said_before_the_run(changes, said, policies, stored, teacher, tmp_path):
    outcome = run_training(
        "--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", stored, "--teacher", teacher,
        "--out", tmp_path / "run", *settings(**changes),
    )  # fmt: skip
    assert outcome.code == 2 and len(outcome.stderr.splitlines()) == 1 and said in outcome.stderr
    assert not (tmp_path / "run").exists()


def test_sharded_weights_are_not_measured(policies, stored, teacher, tmp_path):
    given = ["--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", stored, "--teacher", teacher]
    words = settings(analysis__gradient_agreement_every=2)
    assert run_ranks(1, tmp_path / "run", *given, *words, ACCELERATE_USE_FSDP="true") == [2]
    assert "which FSDP2 and DeepSpeed spread over ranks" in (tmp_path / "ranks.txt").read_text()


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--samples", "4"], "at least 2 batches"), (["--parameters", "policy.none"], "begins with policy.none")],
)
def test_wrong_questions_are_told_in_one_sentence(measured, more, said, tmp_path, capsys):
    assert rocket_hf(["analyze", "gradients", str(measured), "--batch-size", "4", "--out", str(tmp_path), *more]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and said in error


def test_a_run_without_pairs_has_none_to_analyze(tiny_run, tmp_path, capsys):
    tiny_run(tmp_path / "plain", alignment=None, run__steps=1)
    assert rocket_hf(["analyze", "gradients", str(tmp_path / "plain")]) == 2
    assert "aligned nothing" in capsys.readouterr().err
