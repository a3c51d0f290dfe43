"""What layers and projectors resemble: against values by hand and torch's own, on planted layers and on runs."""

import csv
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rocket_hf.analysis.representation_analysis import analyze_representations, between
from rocket_hf.analysis.representations import Resemblances, weight_cosines
from rocket_hf.analysis.restored_run import restore_run
from rocket_hf.commands import main as rocket_hf
from rocket_hf.layer_selection.by_measure import LayerBatch
from rocket_hf.modeling.alignment_head import AlignmentHead
from rocket_hf.modeling.configuration_rocket import AlignmentConfig

CPU = torch.device("cpu")


def head_of(projector: str) -> AlignmentHead:
    config = AlignmentConfig(
        student_layers=[1, 2], teacher_layers=[1, 2], hidden_width=6, target_width=4, projector=projector,
        nesting="none",
    )  # fmt: skip
    torch.manual_seed(0)
    return AlignmentHead(config, 5, 2)


def drawn_batch(samples: int = 3) -> LayerBatch:
    draw = torch.Generator().manual_seed(samples)
    student = {layer: torch.randn(samples, 2, 9, 5, generator=draw) for layer in range(3)}
    teacher = {layer: torch.randn(samples, 2, 9, 4, generator=draw) for layer in (1, 2)}
    for maps in teacher.values():
        maps[:, :, 0] = 0  # a bar of the picture
    mask = torch.ones(samples, 2, dtype=torch.bool)
    mask[0, 1] = False
    return LayerBatch(student, teacher, mask)


def test_cka_of_a_batch_is_that_of_unbiased_hsic_by_hand():
    """Song et al. 2012, equation 5, term by term, between student layer 1 and teacher layer 2."""
    batch = drawn_batch()
    sums = Resemblances(head_of("shared"), 2, [1, 2], CPU)
    sums.add(batch)

    def hsic(x, y):
        a, b = ((each @ each.T).fill_diagonal_(0) for each in (x, y))
        n = len(a)
        trace = sum(a[i, j] * b[j, i] for i in range(n) for j in range(n))
        return (trace + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (a @ b).sum()) / (n * (n - 3))

    there = batch.there()
    assert there.sum() == 5 * 8
    x, y = batch.student[1][there].double(), batch.teacher[2][there].double()
    wanted = hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()
    found = sums.at(0)
    assert found.student_teacher[1][1] == pytest.approx(wanted.item(), abs=1e-5)
    assert np.allclose(np.diag(found.student), 1) and np.shape(found.student_teacher) == (3, 2)


def test_a_layer_is_recognized_in_a_turned_copy():
    batch = drawn_batch(8)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))[0]
    batch.student[2] = 3 * batch.student[1] @ turn + 2
    sums = Resemblances(head_of("shared"), 2, [1, 2], CPU)
    sums.add(batch)
    found = sums.at(0)
    assert found.student[1][2] == pytest.approx(1, abs=1e-5)
    assert abs(found.student[0][1]) < 0.2 and abs(found.student_teacher[1][0]) < 0.2


def test_projected_cosines_are_those_of_torch():
    head, batch = head_of("independent"), drawn_batch()
    batch.camera_mask[:] = True
    sums = Resemblances(head, 2, [1, 2], CPU)
    sums.add(batch)
    there, wanted = batch.there(), []
    for layer, projector in zip((1, 2), head.projectors, strict=True):
        made = projector(batch.student[layer][there], 6)
        wanted.append(F.cosine_similarity(made, batch.teacher[layer][there], dim=-1).mean().item())
    assert sums.at(0).projected == pytest.approx(wanted, abs=1e-5)


def test_projectors_are_compared_by_weights_and_by_what_they_make_of_the_same_tokens():
    head, batches = head_of("independent"), [drawn_batch(3), drawn_batch(5)]
    for each in head.projectors:
        torch.nn.init.normal_(each.fc1.weight)
        torch.nn.init.normal_(each.fc2.weight)
    sums = Resemblances(head, 2, [1, 2], CPU)
    made, one, two = [], *head.projectors
    for batch in batches:
        sums.add(batch)
        tokens = torch.cat([batch.student[layer][batch.there()] for layer in (1, 2)])
        made.append(F.cosine_similarity(one(tokens, 6), two(tokens, 6), dim=-1))
    found = sums.at(7)
    assert found.projector_outputs[0][1] == pytest.approx(torch.cat(made).mean().item(), abs=1e-5)
    flat = [torch.cat([each.fc1.weight.flatten(), each.fc2.weight.flatten()]) for each in (one, two)]
    assert found.projector_weights[0][1] == pytest.approx(F.cosine_similarity(*flat, dim=0).item(), abs=1e-5)
    two.load_state_dict(one.state_dict())
    torch.testing.assert_close(weight_cosines(head), torch.ones(2, 2, dtype=torch.float64))


def test_a_shared_projector_is_not_compared_with_itself():
    sums = Resemblances(head_of("shared"), 2, [1, 2], CPU)
    sums.add(drawn_batch())
    found = sums.at(0)
    assert found.projector_weights is None and found.projector_outputs is None
    assert between([[1.0, 0.2], [0.4, 1.0]]) == pytest.approx(0.3)


def test_all_checkpoints_of_a_run_and_its_start(naive, tmp_path, capsys):
    words = [naive, "--checkpoints", "all", "--samples", 4, "--batch-size", 2, "--out", tmp_path]
    assert rocket_hf(["analyze", "representations", *map(str, words)]) == 0
    said = capsys.readouterr().out
    assert "step 0 " in said and "weights of two projectors" in said
    read = json.loads((tmp_path / "representations.json").read_text())
    assert [each["step"] for each in read["steps"]] == [0, 1, 2] and read["batches"] == 2
    rows = list(csv.reader((tmp_path / "projected.csv").open()))
    assert rows[0] == ["step", *read["pairs"]] and [row[0] for row in rows[1:]] == ["0", "1", "2"]
    for name in ("student-teacher", "student", "projector-weights", "projector-outputs"):
        table = list(csv.reader((tmp_path / f"{name}-00000002.csv").open()))
        assert len(table) == (4 if name.startswith("student") else 3) + 1
        assert (tmp_path / f"{name}-00000002.png").read_bytes().startswith(b"\x89PNG")


def test_the_last_checkpoint_is_the_run_as_it_is(naive):
    found, pairs, _, _ = analyze_representations(naive, CPU, "last", 2, 2)
    assert [each.step for each in found] == [2] and len(found[0].projected) == len(pairs)
    reopened = restore_run(naive, CPU)
    ((batch, targets),) = reopened.batches(2, 2)
    with torch.no_grad():
        losses = reopened.policy(**batch, targets=targets).losses
    wanted = [1 - losses[f"alignment/{pair}"].item() for pair in pairs]
    assert found[0].projected == pytest.approx(wanted, abs=1e-4)
    all_steps, *_ = analyze_representations(naive, CPU, "all", 2, 2)
    np.testing.assert_allclose(all_steps[-1].student, found[0].student, atol=1e-6)
    assert all_steps[0].projected != pytest.approx(found[0].projected, abs=1e-6)


def test_what_cannot_be_looked_at_is_said(naive, tmp_path, capsys):
    assert rocket_hf(["analyze", "representations", str(naive), "--samples", "3"]) == 2
    assert "3 samples make no batch of 8" in capsys.readouterr().err
    assert rocket_hf(["analyze", "representations", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
