"""What holds for ROCKET-2 at any size: who sees what, memory against recomputation, losses, heads that drop out."""

from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F

from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.rocket2_auxiliary import describe_masks
from rocket_hf.modeling.rocket2_contract import Goal

TINY = dict(
    image_size=(32, 48), rgb_depth=3, rgb_width=32, rgb_heads=2, rgb_mlp_width=64, mask_depth=3, mask_width=16,
    mask_heads=2, mask_mlp_width=32, width=32, heads=2, view_tokens=2, spatial_layers=2, temporal_layers=2,
    window_steps=3,
)  # fmt: skip
FACTORED = {"action_space": "factored", "action_factors": {"forward": 3, "turn": 5}, "rest_action": [0, 2]}
STEPS = 8


def random_model(**changes) -> Rocket2ForActionPrediction:
    torch.manual_seed(0)
    model = Rocket2ForActionPrediction(Rocket2Config(**(TINY | FACTORED | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4 if parameter.dim() > 1 else 0.2)
    return model.eval()


@pytest.fixture
def model() -> Rocket2ForActionPrediction:
    return random_model()


@pytest.fixture
def batch(model):
    return model.config.fake_batch(batch_size=2, steps=STEPS, goals=3)


def part(batch, begin, end):
    whole = ("goal_images", "goal_masks", "goal_interactions")
    return {key: value if key in whole else value[:, begin:end] for key, value in batch.items()}


def scores(output) -> torch.Tensor:
    """Everything that is said at each step: (B, T, numbers)."""
    return torch.cat([*output.logits.values(), *output.auxiliary.values()], dim=-1)


def goal_at(batch, step) -> Goal:
    rows, index = torch.arange(len(batch["images"])), batch["goal_index"][:, step]
    return Goal(*(batch[key][rows, index] for key in ("goal_images", "goal_masks", "goal_interactions")))


def capture(model, monkeypatch) -> list[torch.Tensor]:
    """The scores by which each step draws its action."""
    seen, sample = [], model.action_heads.sample

    def listen(said, *rest):
        seen.append(torch.cat([*said.values()], dim=-1))
        return sample(said, *rest)

    monkeypatch.setattr(model.action_heads, "sample", listen)
    return seen


# Eyes


@pytest.mark.parametrize(("part", "channels"), [("rgb", 3), ("mask", 1)])
def test_encoders_are_timms(model, part, channels):
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


def test_only_the_picture_encoder_is_frozen(model, batch):
    frozen = {name.split(".")[1] for name, weight in model.named_parameters() if not weight.requires_grad}
    assert frozen == {"rgb"}
    model.train()
    sum(model(**batch).losses.values()).backward()
    unused = {name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None}
    assert not unused
    thawed = random_model(rgb_frozen=False)
    sum(thawed(**batch).losses.values()).backward()
    assert thawed.views.rgb.patch_embedding.weight.grad.abs().sum() > 0


# Who sees what


@pytest.mark.parametrize("key", ["images", "goal_index", "previous_actions"])
def test_a_later_step_changes_nothing_earlier(model, batch, key):
    changed = batch[key].clone()
    last = STEPS - 2
    changed[:, last:] = 0 if key == "images" else (changed[:, last:] + 1) % 3
    with torch.no_grad():
        before, after = scores(model(**batch)), scores(model(**{**batch, key: changed}))
    assert torch.equal(before[:, :last], after[:, :last])
    assert (before[:, last:] - after[:, last:]).abs().amax() > 1e-4


def test_nothing_older_than_the_window_changes_anything():
    """Of one layer; each further one looks back another window, through what the first has understood."""
    model = random_model(temporal_layers=1)
    batch = model.config.fake_batch(batch_size=1, steps=STEPS)
    images = batch["images"].clone()
    images[:, 0] = 0
    with torch.no_grad():
        before, after = scores(model(**batch)), scores(model(**{**batch, "images": images}))
    window = model.config.window_steps
    differ = (before - after).abs().amax(dim=(0, 2)) > 0
    assert differ[:window].all()
    assert torch.equal(before[:, window:], after[:, window:])


def test_the_view_heads_know_neither_interaction_nor_previous_action_of_their_step(model, batch):
    changed = {**batch, "previous_actions": (batch["previous_actions"] + 1) % 3}
    changed["goal_interactions"] = 1 - batch["goal_interactions"].clamp(0, 1)
    first = [part(given, 0, 1) for given in (batch, changed)]
    with torch.no_grad():
        before, after = (model(**given) for given in first)
    assert all(torch.equal(before.auxiliary[name], after.auxiliary[name]) for name in before.auxiliary)
    assert not torch.equal(before.logits["turn"], after.logits["turn"])


# Memory


@pytest.mark.parametrize("cuts", [(5,), (1, 2, 3, 4), (2, 7)])
def test_chunks_with_a_memory_are_the_whole_episode(model, batch, cuts):
    with torch.no_grad():
        whole, parts, memory = scores(model(**batch)), [], None
        for begin, end in zip((0, *cuts), (*cuts, STEPS), strict=True):
            output = model(memory=memory, **part(batch, begin, end))
            memory = output.memory
            parts.append(scores(output))
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)
    assert memory.keys.shape[2] == model.config.window - 1


def test_steps_are_the_whole_episode(model, batch, monkeypatch):
    drawn = capture(model, monkeypatch)
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


def test_a_step_leaves_the_old_state_as_it_was(model, batch):
    state = model.initial_state(2)
    _, state = model.step(batch["images"][:, 0], goal_at(batch, 0), state)
    copies = [tensor.clone() for tensor in (*state.memory, state.goals, state.previous_actions)]
    first, _ = model.step(batch["images"][:, 1], goal_at(batch, 2), state, temperature=0)
    model.reset(state, torch.tensor([True, True]))
    assert all(
        torch.equal(a, b)
        for a, b in zip((*state.memory, state.goals, state.previous_actions), copies, strict=True)
    )  # fmt: skip
    again, _ = model.step(batch["images"][:, 1], goal_at(batch, 2), state, temperature=0)
    assert torch.equal(first, again)


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_an_environment_that_starts_anew_is_like_a_new_one(model, batch, guidance, monkeypatch):
    state = model.initial_state(2, guidance)
    for step in range(4):
        _, state = model.step(batch["images"][:, step], goal_at(batch, step), state, temperature=0)
    drawn = capture(model, monkeypatch)
    model.step(batch["images"][:, 4], None, state, temperature=0)
    model.step(batch["images"][:, 4], None, model.reset(state, torch.tensor([False, True])), temperature=0)
    model.step(batch["images"][1:, 4], None, model.initial_state(1, guidance), temperature=0)
    going_on, reset, new = drawn
    torch.testing.assert_close(reset[1:], new, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reset[0], going_on[0], atol=1e-5, rtol=1e-5)
    assert (going_on[1] - new[0]).abs().max() > 1e-3


# Goals


def test_goals_last_until_they_are_changed_or_cleared(model, batch, monkeypatch):
    drawn, images = capture(model, monkeypatch), batch["images"][:, 0]
    goal, second = goal_at(batch, 0), torch.tensor([False, True])
    shown = model.with_goal(model.initial_state(2), goal)
    model.step(images, None, shown, temperature=0)
    model.step(images, goal, model.initial_state(2), temperature=0)
    model.step(images, model.no_goal(1, second), shown, temperature=0)
    model.step(images, None, model.initial_state(2), temperature=0)
    lasting, given, half_cleared, none = drawn
    assert torch.equal(lasting, given)
    torch.testing.assert_close(half_cleared[0], given[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(half_cleared[1], none[1], atol=1e-5, rtol=1e-5)
    assert (given - none).abs().amax(dim=-1).min() > 1e-3


def test_guidance_goes_away_from_what_is_done_without_a_goal(model, batch, monkeypatch):
    """(1 + k) times one run's scores minus k times another's, each with its own memory."""
    drawn, previous = capture(model, monkeypatch), batch["previous_actions"]
    for guidance, with_goals in ((0.0, True), (0.0, False), (1.5, True)):
        state = model.initial_state(2, guidance)
        for step in range(5):
            state = replace(state, previous_actions=previous[:, step])
            goal = goal_at(batch, step) if with_goals else None
            _, state = model.step(batch["images"][:, step], goal, state)
    aimed, aimless, guided = (torch.stack(drawn[begin : begin + 5]) for begin in (0, 5, 10))
    torch.testing.assert_close(guided, 2.5 * aimed - 1.5 * aimless, atol=1e-4, rtol=1e-4)
    assert (aimed - aimless).abs().max() > 1e-2


# Actions


def test_actions_are_drawn_by_their_chances(model):
    said = {"forward": torch.tensor([[0.0, 1.0, 2.0]]).repeat(20_000, 1), "turn": torch.zeros(20_000, 5)}
    draw = torch.Generator().manual_seed(0)
    for temperature in (1.0, 0.5):
        drawn = model.action_heads.sample(said, temperature, draw)
        found = drawn[:, 0].bincount(minlength=3) / len(drawn)
        torch.testing.assert_close(found, (said["forward"][0] / temperature).softmax(-1), atol=0.015, rtol=0)
    assert (model.action_heads.sample(said, 0, draw)[:, 0] == 2).all()


def test_training_hides_most_previous_actions(model):
    remember = model.previous_action.train()
    actions = torch.tensor([[1, 2]]).repeat(4000, 1)
    shown = remember(actions, torch.Generator().manual_seed(0))
    hidden = (shown == remember.hidden.weight).all(dim=-1)
    assert 0.72 < hidden.float().mean() < 0.78
    alone = remember.eval()(actions[:1], None)
    assert torch.equal(shown[~hidden], alone.expand_as(shown[~hidden]))
    tables = [table.weight for table in remember.action.factors.values()]
    assert torch.equal(alone[0], tables[0][1] + tables[1][2])


def test_a_policy_may_forget_what_it_did():
    model = random_model(reads_previous_action=False)
    batch = model.config.fake_batch()
    del batch["previous_actions"]
    assert model.config.step_tokens == model.config.view_tokens + 1
    assert all(loss.isfinite() for loss in model(**batch).losses.values())
    action, state = model.step(batch["images"][:, 0], goal_at(batch, 0), model.initial_state(2))
    assert action.shape == (2, 2) and torch.equal(state.previous_actions, action)


# Losses


def test_losses_are_torchs_on_what_counts(model, batch):
    with torch.no_grad():
        output = model(**batch)
    counted, visible = ~batch["is_pad"], batch["visibility"] & ~batch["is_pad"]
    said, losses = output.auxiliary, output.losses
    wanted = {name: [] for name in losses}
    for row in range(2):
        steps, seen = counted[row], visible[row]
        for place, (name, value) in enumerate(output.logits.items()):
            chosen = batch["actions"][row, steps, place]
            wanted[f"action/{name}"].append(F.cross_entropy(value[row, steps], chosen, reduction="sum"))
        target = batch["visibility"][row, steps].float()
        wanted["auxiliary/visibility"].append(
            F.binary_cross_entropy_with_logits(said["visibility"][row, steps, 0], target)
        )
        for name in ("point", "box"):
            wanted[f"auxiliary/{name}"].append(F.l1_loss(said[name][row, seen], batch[name][row, seen]))
    assert visible.any(dim=1).all()
    assert losses.keys() == wanted.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(
            loss, torch.stack(wanted[name]).mean(), msg=lambda text, name=name: f"{name}: {text}"
        )


def test_empty_masks_cost_nothing_and_are_finite(model, batch):
    empty = torch.zeros(2, STEPS, 8, 12)
    batch |= describe_masks(empty)
    assert (batch["point"] == -1).all() and (batch["box"] == -1).all() and not batch["visibility"].any()
    batch["goal_masks"] = torch.zeros_like(batch["goal_masks"])
    losses = model.train()(**batch).losses
    sum(losses.values()).backward()
    assert losses["auxiliary/point"] == 0 == losses["auxiliary/box"] and losses["auxiliary/visibility"] > 0
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)
    assert not model.auxiliary["point"].weight.grad.any()


def test_masks_are_described_as_shares_of_the_picture():
    masks = torch.zeros(2, 4, 8)
    masks[0, 1:3, 4:8] = 1
    told = describe_masks(masks)
    assert told["visibility"].tolist() == [True, False]
    assert told["point"].tolist() == [[0.5, 0.75], [-1, -1]]  # y, x
    assert told["box"].tolist() == [[0.5, 0.25, 1.0, 0.75], [-1, -1, -1, -1]]  # x0, y0, x1, y1


def test_pairs_of_pictures_without_actions_train_the_eyes_alone(model):
    batch = model.config.fake_batch(steps=1)
    del batch["actions"]
    assert set(model.train()(**batch).losses) == {"auxiliary/visibility", "auxiliary/point", "auxiliary/box"}


# Heads that exist only in training


@pytest.mark.parametrize("keep", [(), ("visibility", "point")])
def test_dropping_heads_leaves_actions_as_they_are(model, batch, keep):
    policy = model.for_inference(keep)
    assert list(policy.config.auxiliary_heads) == list(keep) == list(policy.auxiliary)
    shared = zip(policy.views.parameters(), model.views.parameters(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in shared)
    actions = []
    for each in (model, policy):
        state, draw, done = each.initial_state(2, guidance=1.5), torch.Generator().manual_seed(0), []
        for step in range(STEPS):
            action, state = each.step(batch["images"][:, step], goal_at(batch, step), state, generator=draw)
            done.append(action)
        actions.append(torch.stack(done))
        assert set(state.seen) == set(each.config.auxiliary_heads)
    assert torch.equal(*actions)
    with torch.no_grad():
        ours, theirs = model(**batch).logits, policy(**batch).logits
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_head_that_is_not_there_cannot_be_kept(model):
    with pytest.raises(ValueError, match="no head 'point' to keep"):
        model.for_inference().for_inference(["point"])


def test_gradient_checkpointing_changes_no_gradient(batch):
    gradients = []
    for checkpointing in (False, True):
        model = random_model(spatial_dropout=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        sum(model(generator=torch.Generator().manual_seed(0), **batch).losses.values()).backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad})
    torch.testing.assert_close(*gradients)


# What a user may get wrong


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_size": (30, 48)}, "multiples of patch_size=16"),
        ({"heads": 3}, "must be a multiple of heads=3"),
        ({"action_factors": {"turn": 1}}, "each of two choices or more"),
        ({"action_factors": {"turn.left": 2}}, "has no dot"),
        ({"rest_action": [0, 5]}, "one choice of each"),
        ({"auxiliary_heads": ["centre"]}, "auxiliary_heads has 'centre'; known: visibility, point, box"),
        ({"previous_action_dropout": 2.0}, "is a probability"),
        ({"widht": 32}, "did you mean 'width'"),
    ],
)
def test_configurations_are_checked(change, sentence):
    with pytest.raises(Exception) as caught:
        Rocket2Config(**(TINY | FACTORED | change))
    assert sentence in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"images": torch.zeros(2, STEPS, 3, 32, 32)}, r"batch\['images'\] must be \(2, 8, 3, 32, 48\)"),
        ({"actions": torch.zeros(2, STEPS, 3)}, r"batch\['actions'\] must be \(2, 8, 2\)"),
        ({"image": torch.zeros(1)}, "did you mean 'images'"),
        ({"visibility": None}, "the batch lacks 'visibility'"),
    ],
)
def test_batches_are_checked(model, batch, change, sentence):
    given = {key: value for key, value in (batch | change).items() if value is not None}
    with pytest.raises(ValueError, match=sentence):
        model.train()(**given)


def test_steps_are_checked(model, batch):
    state, image = model.initial_state(2), batch["images"][:, 0]
    with pytest.raises(ValueError, match=r"images must be \(2, 3, 32, 48\)"):
        model.step(image[:1], None, state)
    with pytest.raises(ValueError, match=r"goal.images must be \(1, 3, 32, 48\)"):
        model.step(image, replace(goal_at(batch, 0), environments=torch.tensor([True, False])), state)
    with pytest.raises(ValueError, match="guidance is 0 for none"):
        model.initial_state(1, guidance=-1)
