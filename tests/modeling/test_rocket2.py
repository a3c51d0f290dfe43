"""Tests of ROCKET-2: encoders, attention, memory against recomputation, goals and actions."""

from dataclasses import replace

import pytest
import torch

from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction

from .rocket2_tiny import STEPS, goal_at, random_rocket2


@pytest.fixture
def model() -> Rocket2ForActionPrediction:
    return random_rocket2()


@pytest.fixture
def batch(model):
    return model.config.fake_batch(batch_size=2, steps=STEPS, goals=3)


def slice_steps(batch, begin, end):
    per_chunk = ("goal_images", "goal_masks", "goal_interactions")
    return {key: value if key in per_chunk else value[:, begin:end] for key, value in batch.items()}


def all_outputs(output) -> torch.Tensor:
    """Concatenate the scores and the auxiliary outputs of each step: (B, T, values)."""
    return torch.cat([*output.logits.values(), *output.auxiliary.values()], dim=-1)


def record_scores(model, monkeypatch) -> list[torch.Tensor]:
    """Record the scores from which each step samples its action."""
    recorded, sample = [], model.action_heads.sample

    def recording_sample(scores, *arguments):
        recorded.append(torch.cat([*scores.values()], dim=-1))
        return sample(scores, *arguments)

    monkeypatch.setattr(model.action_heads, "sample", recording_sample)
    return recorded


# Encoders


@pytest.mark.parametrize(("part", "channels"), [("rgb", 3), ("mask", 1)])
def test_encoders_equal_those_of_timm(model, part, channels):
    timm = pytest.importorskip("timm", reason="the encoders are compared with timm's")
    ours, config = getattr(model.views, part), model.config
    width, heads, depth = (getattr(config, f"{part}_{size}") for size in ("width", "heads", "depth"))
    theirs = timm.create_model(
        "vit_base_patch16_224.dino", features_only=True, in_chans=channels, img_size=config.image_size,
        embed_dim=width, num_heads=heads, depth=depth, mlp_ratio=2,
    ).eval()  # fmt: skip
    names = {
        "norm1": "attention_norm", "attn.qkv": "qkv", "attn.proj": "attention_out", "norm2": "mlp_norm",
        "mlp.fc1": "mlp_in", "mlp.fc2": "mlp_out", "patch_embed.proj": "patch_embedding",
        "cls_token": "class_token.weight", "pos_embed": "position_embedding.weight",
    }  # fmt: skip
    weights = {}
    for name, weight in theirs.state_dict().items():
        target = name.removeprefix("model.")
        for their_part, our_part in names.items():
            target = target.replace(their_part, our_part)
        weights[target] = weight[0] if name.endswith(("cls_token", "pos_embed")) else weight
    ours.load_state_dict(weights)
    pixels = torch.randn(2, channels, *config.image_size)
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels), theirs(pixels)[-1].flatten(2).mT, atol=1e-5, rtol=1e-5)


def test_only_image_encoder_is_frozen(model, batch):
    frozen = {name.split(".")[1] for name, weight in model.named_parameters() if not weight.requires_grad}
    assert frozen == {"rgb"}
    model.train()
    sum(model(**batch).losses.values()).backward()
    unused = {name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None}
    assert not unused
    unfrozen = random_rocket2(rgb_frozen=False)
    sum(unfrozen(**batch).losses.values()).backward()
    assert unfrozen.views.rgb.patch_embedding.weight.grad.abs().sum() > 0


# Attention


@pytest.mark.parametrize("key", ["images", "goal_index", "previous_actions"])
def test_outputs_do_not_depend_on_later_steps(model, batch, key):
    changed = batch[key].clone()
    last = STEPS - 2
    changed[:, last:] = 0 if key == "images" else (changed[:, last:] + 1) % 3
    with torch.no_grad():
        before, after = all_outputs(model(**batch)), all_outputs(model(**{**batch, key: changed}))
    assert torch.equal(before[:, :last], after[:, :last])
    assert (before[:, last:] - after[:, last:]).abs().amax() > 1e-4


def test_outputs_do_not_depend_on_steps_before_window():
    """Use one layer, because each further layer extends the reach by another window."""
    model = random_rocket2(temporal_layers=1)
    batch = model.config.fake_batch(batch_size=1, steps=STEPS)
    images = batch["images"].clone()
    images[:, 0] = 0
    with torch.no_grad():
        before, after = all_outputs(model(**batch)), all_outputs(model(**{**batch, "images": images}))
    window = model.config.window_steps
    differ = (before - after).abs().amax(dim=(0, 2)) > 0
    assert differ[:window].all()
    assert torch.equal(before[:, window:], after[:, window:])


def test_auxiliary_heads_do_not_depend_on_interaction_and_previous_action(model, batch):
    changed = {**batch, "previous_actions": (batch["previous_actions"] + 1) % 3}
    changed["goal_interactions"] = 1 - batch["goal_interactions"].clamp(0, 1)
    first = [slice_steps(inputs, 0, 1) for inputs in (batch, changed)]
    with torch.no_grad():
        before, after = (model(**inputs) for inputs in first)
    assert all(torch.equal(before.auxiliary[name], after.auxiliary[name]) for name in before.auxiliary)
    assert not torch.equal(before.logits["turn"], after.logits["turn"])


# Memory


@pytest.mark.parametrize("cuts", [(5,), (1, 2, 3, 4), (2, 7)])
def test_chunks_with_memory_equal_whole_episode(model, batch, cuts):
    with torch.no_grad():
        whole, parts, memory = all_outputs(model(**batch)), [], None
        for begin, end in zip((0, *cuts), (*cuts, STEPS), strict=True):
            output = model(memory=memory, **slice_steps(batch, begin, end))
            memory = output.memory
            parts.append(all_outputs(output))
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)
    assert memory.keys.shape[2] == model.config.window - 1


def test_steps_equal_whole_episode(model, batch, monkeypatch):
    drawn = record_scores(model, monkeypatch)
    with torch.no_grad():
        whole = torch.cat([*model(**batch).logits.values()], dim=-1)
    state = model.initial_state(2)
    sizes = {tensor.shape for tensor in state.memory}
    for step in range(STEPS):
        state = replace(state, previous_actions=batch["previous_actions"][:, step])
        action, state = model.step(batch["images"][:, step], goal_at(batch, step), state)
        assert {tensor.shape for tensor in state.memory} == sizes
        assert ((action >= 0) & (action < torch.tensor([3, 5]))).all()
    torch.testing.assert_close(torch.stack(drawn, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_step_does_not_change_old_state(model, batch):
    state = model.initial_state(2)
    _, state = model.step(batch["images"][:, 0], goal_at(batch, 0), state)
    copies = [tensor.clone() for tensor in (*state.memory, state.goals, state.previous_actions)]
    first, _ = model.step(batch["images"][:, 1], goal_at(batch, 2), state, temperature=0)
    model.reset(state, torch.tensor([True, True]))
    assert all(
        torch.equal(tensor, copy)
        for tensor, copy in zip((*state.memory, state.goals, state.previous_actions), copies, strict=True)
    )  # fmt: skip
    again, _ = model.step(batch["images"][:, 1], goal_at(batch, 2), state, temperature=0)
    assert torch.equal(first, again)


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_reset_environment_equals_new_environment(model, batch, guidance, monkeypatch):
    state = model.initial_state(2, guidance)
    for step in range(4):
        _, state = model.step(batch["images"][:, step], goal_at(batch, step), state, temperature=0)
    drawn = record_scores(model, monkeypatch)
    model.step(batch["images"][:, 4], None, state, temperature=0)
    model.step(batch["images"][:, 4], None, model.reset(state, torch.tensor([False, True])), temperature=0)
    model.step(batch["images"][1:, 4], None, model.initial_state(1, guidance), temperature=0)
    continued, reset, new = drawn
    torch.testing.assert_close(reset[1:], new, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reset[0], continued[0], atol=1e-5, rtol=1e-5)
    assert (continued[1] - new[0]).abs().max() > 1e-3


# Goals


def test_goals_last_until_replaced_or_cleared(model, batch, monkeypatch):
    drawn, images = record_scores(model, monkeypatch), batch["images"][:, 0]
    goal, second = goal_at(batch, 0), torch.tensor([False, True])
    state = model.with_goal(model.initial_state(2), goal)
    model.step(images, None, state, temperature=0)
    model.step(images, goal, model.initial_state(2), temperature=0)
    model.step(images, model.no_goal(1, second), state, temperature=0)
    model.step(images, None, model.initial_state(2), temperature=0)
    kept, new, half_cleared, none = drawn
    assert torch.equal(kept, new)
    torch.testing.assert_close(half_cleared[0], new[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(half_cleared[1], none[1], atol=1e-5, rtol=1e-5)
    assert (new - none).abs().amax(dim=-1).min() > 1e-3


def test_guidance_combines_scores_with_and_without_goal(model, batch, monkeypatch):
    """Compare with two separate runs: (1 + k) times the scores with goals minus k times those without."""
    drawn, previous = record_scores(model, monkeypatch), batch["previous_actions"]
    for guidance, with_goals in ((0.0, True), (0.0, False), (1.5, True)):
        state = model.initial_state(2, guidance)
        for step in range(5):
            state = replace(state, previous_actions=previous[:, step])
            goal = goal_at(batch, step) if with_goals else None
            _, state = model.step(batch["images"][:, step], goal, state)
    with_goal, without_goal, guided = (torch.stack(drawn[begin : begin + 5]) for begin in (0, 5, 10))
    torch.testing.assert_close(guided, 2.5 * with_goal - 1.5 * without_goal, atol=1e-4, rtol=1e-4)
    assert (with_goal - without_goal).abs().max() > 1e-2


# Actions


def test_actions_are_sampled_by_their_probabilities(model):
    scores = {"forward": torch.tensor([[0.0, 1.0, 2.0]]).repeat(20_000, 1), "turn": torch.zeros(20_000, 5)}
    draw = torch.Generator().manual_seed(0)
    for temperature in (1.0, 0.5):
        drawn = model.action_heads.sample(scores, temperature, draw)
        frequencies = drawn[:, 0].bincount(minlength=3) / len(drawn)
        torch.testing.assert_close(frequencies, (scores["forward"][0] / temperature).softmax(-1), atol=0.015, rtol=0)
    assert (model.action_heads.sample(scores, 0, draw)[:, 0] == 2).all()


def test_environments_with_own_generators_are_independent(model, batch):
    def run(rows):
        draws = [torch.Generator().manual_seed(row) for row in rows]
        state, chosen = model.initial_state(len(rows)), []
        for step in range(STEPS):
            action, state = model.step(batch["images"][rows, step], None, state, generator=draws)
            chosen.append(action)
        return torch.stack(chosen, dim=1)

    together = run([0, 1])
    assert torch.equal(together, torch.cat([run([0]), run([1])])) and not torch.equal(together[0], together[1])


def test_training_hides_most_previous_actions(model):
    embed = model.previous_action.train()
    actions = torch.tensor([[1, 2]]).repeat(4000, 1)
    embedded = embed(actions, torch.Generator().manual_seed(0))
    hidden = (embedded == embed.hidden.weight).all(dim=-1)
    assert 0.72 < hidden.float().mean() < 0.78
    visible = embed.eval()(actions[:1], None)
    assert torch.equal(embedded[~hidden], visible.expand_as(embedded[~hidden]))
    tables = [table.weight for table in embed.action.factors.values()]
    assert torch.equal(visible[0], tables[0][1] + tables[1][2])


def test_policy_may_ignore_previous_action():
    model = random_rocket2(reads_previous_action=False)
    batch = model.config.fake_batch()
    del batch["previous_actions"]
    assert model.config.step_tokens == model.config.view_tokens + 1
    assert all(loss.isfinite() for loss in model(**batch).losses.values())
    action, state = model.step(batch["images"][:, 0], goal_at(batch, 0), model.initial_state(2))
    assert action.shape == (2, 2) and torch.equal(state.previous_actions, action)
