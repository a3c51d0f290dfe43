"""Gradient agreement of losses: against torch's backward pass, by hand, and the claim of the ROCKET paper."""

import csv
import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rocket_hf.analysis.bootstrap import bootstrap_mean
from rocket_hf.analysis.gradient_report import summarize_agreement, write_gradient_agreement
from rocket_hf.modeling.alignment_head import AlignmentHead
from rocket_hf.modeling.configuration_pi0 import Pi0Config
from rocket_hf.modeling.configuration_rocket import AlignmentConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.tiny import PI0_SIZES, tiny_config
from rocket_hf.training.vla.gradient_agreement import loss_cosines
from rocket_hf.training.vla.loss_gradients import agreement_metrics, cosine_table, loss_gradients, loss_terms
from rocket_hf.training.vla.shared_weights import shared_weights


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    return RocketForActionPrediction(tiny_config("pi0"))


def test_loss_gradients_match_separate_backward_passes(policy):
    batch, targets = policy.config.fake_batch(), policy.config.fake_targets()
    batch |= {"noise": torch.randn(2, 4, 8), "time": torch.rand(2)}
    weights = shared_weights(policy, None)
    losses = loss_terms(policy(**batch, targets=targets).losses)
    assert list(losses) == ["1-2", "2-3", "3-4", "action"]
    gradients = loss_gradients(list(losses.values()), list(weights.values()))
    for name, row in zip(losses, gradients, strict=True):
        policy.zero_grad()
        loss_terms(policy(**batch, targets=targets).losses)[name].backward()
        torch.testing.assert_close(row, torch.cat([weight.grad.flatten() for weight in weights.values()]))
    policy.zero_grad()
    names, table = loss_cosines(policy, batch, targets, weights)
    assert names == list(losses)
    torch.testing.assert_close(table, torch.cosine_similarity(gradients[:, None], gradients[None], dim=-1))
    assert all(weight.grad is None for weight in policy.parameters())


def test_default_weights_are_those_of_the_first_aligned_block(policy):
    names = list(shared_weights(policy, None))
    assert names and all(name.startswith("policy.layers.0.") and "expert" not in name for name in names)
    assert list(shared_weights(policy, "policy.action_out")) == ["policy.action_out.weight", "policy.action_out.bias"]
    with pytest.raises(ValueError, match="no trainable weight has a name that begins with"):
        shared_weights(policy, "policy.head")


def test_named_losses_order_pairs_from_shallow_to_deep():
    losses = {"action/b": torch.tensor(2.0), "alignment/10-24": torch.tensor(1.0), "alignment/2--1": torch.tensor(3.0)}
    losses["action/a"] = torch.tensor(0.5)
    named = loss_terms(losses)
    assert {name: loss.item() for name, loss in named.items()} == {"2--1": 3.0, "10-24": 1.0, "action": 2.5}
    assert list(named) == ["2--1", "10-24", "action"]


def test_agreement_metrics_match_values_computed_by_hand():
    gradients = torch.tensor([[1.0, 0], [1, 0], [-2, 0], [0, 3], [0, 0]])
    table = cosine_table(gradients)
    assert table.tolist() == [[1, 1, -1, 0, 0], [1, 1, -1, 0, 0], [-1, -1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]]
    figures = agreement_metrics(table[:4, :4])  # three pairs and, last, the action
    assert figures["pairs"].item() == pytest.approx(-1 / 3)
    assert figures["conflicting"].item() == pytest.approx(2 / 3)
    assert figures["action"].item() == 0
    assert set(agreement_metrics(table[:2, :2])) == {"action"}  # one pair has no other


def test_bootstrap_interval_is_1_96_standard_errors_for_normal_values():
    values = np.random.default_rng(0).normal(3, 2, size=400)
    mean, low, high = bootstrap_mean(values)
    error = values.std() / 20
    assert mean == values.mean()
    assert low == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.15 * error)


def test_written_agreement_can_be_read(tmp_path):
    draw = torch.Generator().manual_seed(0)
    tables = torch.stack([cosine_table(torch.randn(4, 5, generator=draw)) for _ in range(6)])
    names = ["1-2", "2-3", "3-4", "action"]
    write_gradient_agreement(tmp_path / "out", summarize_agreement(names, tables), {"step": 7})
    read = json.loads((tmp_path / "out" / "gradients.json").read_text())
    assert read["step"] == 7 and read["names"] == names
    assert np.allclose(read["mean"], tables.mean(dim=0), atol=1e-6)
    assert read["metrics"]["pairs"]["low"] <= read["metrics"]["pairs"]["mean"] <= read["metrics"]["pairs"]["high"]
    rows = list(csv.reader((tmp_path / "out" / "gradients.csv").open()))
    assert rows[0] == ["loss", *names] and float(rows[1][2]) == pytest.approx(read["mean"][0][1], rel=1e-5)
    assert (tmp_path / "out" / "gradients.png").read_bytes().startswith(b"\x89PNG")


# Propositions 1 and 2 of the ROCKET paper

VARIANTS = {
    "independent": {"projector": "independent", "nesting": "none"},
    "nested": {"projector": "shared", "nesting": "increasing"},
    "shared": {"projector": "shared", "nesting": "none"},
}


def mean_cosine(stream: list[Tensor], root: Tensor, seed: int, **variant) -> float:
    """Return the mean cosine between the gradients of six pairs with respect to the root of a residual stream.

    The teacher's layers are similar to each other.
    """
    width, layers = stream[0].shape[-1], range(1, len(stream) + 1)
    config = AlignmentConfig(
        student_layers=list(layers), teacher_layers=list(layers), hidden_width=4 * width, target_width=48, **variant
    )
    torch.manual_seed(seed)
    head = AlignmentHead(config, width, len(stream))
    for projector in head.projectors:
        nn.init.xavier_uniform_(projector.fc1.weight)
        nn.init.xavier_uniform_(projector.fc2.weight)
    common = torch.randn(*root.shape[:-1], 48)
    targets = {layer: common + 0.3 * torch.randn_like(common) for layer in layers}
    losses = head(dict(zip(layers, stream, strict=True)), targets, torch.ones(root.shape[:2], dtype=torch.bool))
    table = cosine_table(loss_gradients(list(losses.values()), [root]))
    return agreement_metrics(torch.nn.functional.pad(table, (0, 1, 0, 1)))["pairs"].item()


def test_pair_gradients_agree_through_a_shared_projector_and_not_through_independent_ones():
    """The residual streams are random walks with small steps, as the theory assumes."""
    cosines = {name: [] for name in VARIANTS}
    for seed in range(4):
        torch.manual_seed(100 + seed)
        root = torch.randn(2, 2, 8, 64, requires_grad=True)
        stream = [root]
        for _ in range(5):
            stream.append(stream[-1] + 0.2 * torch.randn_like(root))
        for name, variant in VARIANTS.items():
            cosines[name].append(mean_cosine(stream, root, seed, **variant))
    means = {name: np.mean(values) for name, values in cosines.items()}
    assert abs(means["independent"]) < 0.05
    assert means["shared"] > 0.8
    assert means["independent"] + 0.3 < means["nested"] < means["shared"] - 0.1


def test_pair_gradients_of_a_policy_agree_through_a_shared_projector():
    """Gradients are with respect to the first aligned block of a pi0 with eight blocks."""
    means = {}
    sizes = Pi0Config(**(PI0_SIZES | {"depth": 8}))
    for name, variant in VARIANTS.items():
        alignment = AlignmentConfig(
            student_layers=[2, 3, 4, 5, 6, 7], teacher_layers=[1, 2, 3, 4, 5, 6], hidden_width=256, target_width=48,
            **variant,
        )  # fmt: skip
        torch.manual_seed(0)
        policy = RocketForActionPrediction(tiny_config(policy_config=sizes, alignment=alignment))
        batch, targets = policy.config.fake_batch(batch_size=4), policy.config.fake_targets(batch_size=4)
        common = targets[1].clone()
        targets = {layer: common + 0.3 * target for layer, target in targets.items()}
        _, table = loss_cosines(policy, batch, targets, shared_weights(policy, None))
        means[name] = agreement_metrics(table)["pairs"].item()
    assert abs(means["independent"]) < 0.25
    assert means["independent"] + 0.2 < means["nested"] < means["shared"]
    assert means["shared"] > 0.7
