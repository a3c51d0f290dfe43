"""Similarity of layers and projectors: against values by hand and torch's functions, planted layers, and runs."""

import csv
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rocket_hf.analysis.representation_analysis import analyze_representations, mean_off_diagonal
from rocket_hf.analysis.representations import RepresentationSums, weight_cosines
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
        maps[:, :, 0] = 0  # no target, as in a letterbox bar
    mask = torch.ones(samples, 2, dtype=torch.bool)
    mask[0, 1] = False
    return LayerBatch(student, teacher, mask)


def test_cka_matches_unbiased_hsic_computed_by_hand():
    """Compare student layer 1 and teacher layer 2 with equation 5 of Song et al. 2012, term by term."""
    batch = drawn_batch()
    sums = RepresentationSums(head_of("shared"), 2, [1, 2], CPU)
    sums.add(batch)

    def hsic(x, y):
        a, b = ((each @ each.T).fill_diagonal_(0) for each in (x, y))
        n = len(a)
        trace = sum(a[i, j] * b[j, i] for i in range(n) for j in range(n))
        return (trace + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (a @ b).sum()) / (n * (n - 3))

    mask = batch.token_mask()
    assert mask.sum() == 5 * 8
    x, y = batch.student[1][mask].double(), batch.teacher[2][mask].double()
    expected = hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()
    tables = sums.tables(0)
    assert tables.student_teacher[1][1] == pytest.approx(expected.item(), abs=1e-5)
    assert np.allclose(np.diag(tables.student), 1) and np.shape(tables.student_teacher) == (3, 2)


def test_cka_of_a_rotated_and_scaled_copy_is_1():
    batch = drawn_batch(8)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))[0]
    batch.student[2] = 3 * batch.student[1] @ rotation + 2
    sums = RepresentationSums(head_of("shared"), 2, [1, 2], CPU)
    sums.add(batch)
    tables = sums.tables(0)
    assert tables.student[1][2] == pytest.approx(1, abs=1e-5)
    assert abs(tables.student[0][1]) < 0.2 and abs(tables.student_teacher[1][0]) < 0.2


def test_projected_cosines_match_torch_cosine_similarity():
    head, batch = head_of("independent"), drawn_batch()
    batch.camera_mask[:] = True
    sums = RepresentationSums(head, 2, [1, 2], CPU)
    sums.add(batch)
    mask, expected = batch.token_mask(), []
    for layer, projector in zip((1, 2), head.projectors, strict=True):
        outputs = projector(batch.student[layer][mask], 6)
        expected.append(F.cosine_similarity(outputs, batch.teacher[layer][mask], dim=-1).mean().item())
    assert sums.tables(0).projected == pytest.approx(expected, abs=1e-5)


def test_projectors_are_compared_by_weights_and_by_outputs_for_the_same_tokens():
    head, batches = head_of("independent"), [drawn_batch(3), drawn_batch(5)]
    for each in head.projectors:
        torch.nn.init.normal_(each.fc1.weight)
        torch.nn.init.normal_(each.fc2.weight)
    sums = RepresentationSums(head, 2, [1, 2], CPU)
    outputs, one, two = [], *head.projectors
    for batch in batches:
        sums.add(batch)
        tokens = torch.cat([batch.student[layer][batch.token_mask()] for layer in (1, 2)])
        outputs.append(F.cosine_similarity(one(tokens, 6), two(tokens, 6), dim=-1))
    tables = sums.tables(7)
    assert tables.projector_outputs[0][1] == pytest.approx(torch.cat(outputs).mean().item(), abs=1e-5)
    flat = [torch.cat([each.fc1.weight.flatten(), each.fc2.weight.flatten()]) for each in (one, two)]
    assert tables.projector_weights[0][1] == pytest.approx(F.cosine_similarity(*flat, dim=0).item(), abs=1e-5)
    two.load_state_dict(one.state_dict())
    torch.testing.assert_close(weight_cosines(head), torch.ones(2, 2, dtype=torch.float64))


def test_shared_projector_has_no_comparison_of_projectors():
    sums = RepresentationSums(head_of("shared"), 2, [1, 2], CPU)
    sums.add(drawn_batch())
    tables = sums.tables(0)
    assert tables.projector_weights is None and tables.projector_outputs is None
    assert mean_off_diagonal([[1.0, 0.2], [0.4, 1.0]]) == pytest.approx(0.3)


def test_analyze_representations_covers_initial_policy_and_all_checkpoints(naive, tmp_path, capsys):
    words = [naive, "--checkpoints", "all", "--samples", 4, "--batch-size", 2, "--out", tmp_path]
    assert rocket_hf(["analyze", "representations", *map(str, words)]) == 0
    output = capsys.readouterr().out
    assert "step 0 " in output and "between the weights of two projectors" in output
    read = json.loads((tmp_path / "representations.json").read_text())
    assert [each["step"] for each in read["steps"]] == [0, 1, 2] and read["batches"] == 2
    rows = list(csv.reader((tmp_path / "projected.csv").open()))
    assert rows[0] == ["step", *read["pairs"]] and [row[0] for row in rows[1:]] == ["0", "1", "2"]
    for name in ("student-teacher", "student", "projector-weights", "projector-outputs"):
        table = list(csv.reader((tmp_path / f"{name}-00000002.csv").open()))
        assert len(table) == (4 if name.startswith("student") else 3) + 1
        assert (tmp_path / f"{name}-00000002.png").read_bytes().startswith(b"\x89PNG")


def test_last_checkpoint_matches_the_losses_of_the_restored_run(naive):
    analysis = analyze_representations(naive, CPU, "last", 2, 2)
    (last,), pairs = analysis.steps, analysis.pairs
    assert last.step == 2 and len(last.projected) == len(pairs)
    restored = restore_run(naive, CPU)
    ((batch, targets),) = restored.batches(2, 2)
    with torch.no_grad():
        losses = restored.policy(**batch, targets=targets).losses
    expected = [1 - losses[f"alignment/{pair}"].item() for pair in pairs]
    assert last.projected == pytest.approx(expected, abs=1e-4)
    all_steps = analyze_representations(naive, CPU, "all", 2, 2).steps
    np.testing.assert_allclose(all_steps[-1].student, last.student, atol=1e-6)
    assert all_steps[0].projected != pytest.approx(last.projected, abs=1e-6)


def test_invalid_samples_and_folders_are_rejected(naive, tmp_path, capsys):
    assert rocket_hf(["analyze", "representations", str(naive), "--samples", "3"]) == 2
    assert "3 samples do not fill a batch of 8" in capsys.readouterr().err
    assert rocket_hf(["analyze", "representations", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
