"""Tests of the policy interface, which every backbone must pass."""

import gc

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.tiny import tiny_config

from .conftest import random_model


def seeded_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def observation(batch: dict) -> dict:
    return {key: value for key, value in batch.items() if key not in ("actions", "action_is_pad")}


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(losses.values())).sum()


def noise_and_time(config, size: int, seed: int = 0) -> dict:
    """Return fixed values for what a flow-matching policy would draw from its generator."""
    if not config.policy_config.draws_noise:
        return {}
    shape = (size, config.chunk_size, config.policy_config.max_action_dim)
    return {"noise": torch.randn(shape, generator=seeded_generator(seed)), "time": torch.linspace(0.2, 0.7, size)}


def test_losses_are_named_float32_scalars(model):
    losses = model(
        **model.config.fake_batch(), targets=model.config.fake_targets(), generator=seeded_generator()
    ).losses
    action = model.config.policy_config.action_loss
    assert list(losses) == [action, "alignment/1-2", "alignment/2-3", "alignment/3-4"]
    assert all(loss.dim() == 0 and loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())


def test_loss_decreases_on_fixed_batch(config):
    torch.manual_seed(0)
    model = RocketForActionPrediction(config).train()
    batch, targets = config.fake_batch(), config.fake_targets()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(60):
        loss = total(model(**batch, targets=targets, generator=seeded_generator()).losses)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.5 * history[0]


def test_every_weight_gets_gradient_when_last_layer_is_tapped(model):
    total(model.train()(**model.config.fake_batch(), targets=model.config.fake_targets()).losses).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_generator_determines_all_random_numbers(model):
    batch, policy = model.config.fake_batch(), model.config.policy_config
    same, again, other = (
        model(**batch, generator=seeded_generator(seed)).losses[policy.action_loss] for seed in (1, 1, 2)
    )
    assert same == again and (same != other) == policy.draws_noise
    same, again, other = (
        model.predict_action_chunk(**observation(batch), generator=seeded_generator(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(same, again) and torch.equal(same, other) != policy.draws_noise
    assert same.shape == (2, model.config.chunk_size, model.config.action_dim)


@pytest.mark.parametrize("family", ["pi0", "pi05", "smolvla"])
def test_cached_pass_gives_same_velocity_as_training(family):
    """Check that the actions found by one Euler step, noise minus the velocity at time 1, have a loss of zero."""
    config = tiny_config(family, alignment=None)
    config.policy_config.denoising_steps = 1
    model = random_model(config)
    batch = config.fake_batch(batch_size=3)
    batch["camera_mask"] = torch.tensor([[True, True], [False, True], [True, False]])
    noise = torch.randn(3, config.chunk_size, config.policy_config.max_action_dim, generator=seeded_generator())
    actions = model.predict_action_chunk(**observation(batch), noise=noise)
    loss = model(**batch | {"actions": actions}, noise=noise, time=torch.ones(3)).losses["action/flow_matching"]
    assert loss < 1e-10


def test_training_times_follow_published_distribution():
    """Check mean 0.6004 and variance 0.999^2 * 0.06857 of 0.999 Beta(1.5, 1) + 0.001."""
    from rocket_hf.modeling.flow_matching import draw_time

    times = draw_time(200_000, torch.device("cpu"), seeded_generator())
    assert times.min() >= 0.001 and times.max() <= 1
    assert times.mean().item() == pytest.approx(0.999 * 0.6 + 0.001, abs=2e-3)
    assert times.var().item() == pytest.approx(0.999**2 * 1.5 / (2.5**2 * 3.5), abs=2e-3)


def test_loss_ignores_padding_steps(model):
    """Check that the loss is the mean over samples of the mean over the steps that exist."""
    config, name = model.config, model.config.policy_config.action_loss
    batch = config.fake_batch()
    batch["action_is_pad"][-1, -1] = True
    full = dict(batch, action_is_pad=torch.zeros_like(batch["action_is_pad"]))
    drawn = noise_and_time(config, 2)
    samples = []
    for sample in range(2):
        one, own = ({key: value[sample : sample + 1] for key, value in part.items()} for part in (full, drawn))
        real = ~batch["action_is_pad"][sample]
        masked = model(**dict(one, action_is_pad=~real[None]), **own).losses[name]
        expected = step_errors(model, one, own)[real].mean() if real.any() else torch.zeros(())
        torch.testing.assert_close(masked, expected)
        samples.append(masked)
    loss = model(**batch, **drawn).losses[name]
    torch.testing.assert_close(loss, torch.stack(samples).mean())
    assert loss != model(**full, **drawn).losses[name]


def step_errors(model, one: dict, drawn: dict) -> torch.Tensor:
    """Return the error of each step: the loss with all other steps masked."""
    errors = []
    for step in range(model.config.chunk_size):
        is_pad = torch.ones(1, model.config.chunk_size, dtype=torch.bool)
        is_pad[0, step] = False
        losses = model(**dict(one, action_is_pad=is_pad), **drawn).losses
        errors.append(losses[model.config.policy_config.action_loss])
    return torch.stack(errors)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_policy_accepts_cameras_up_to_its_limit(family, count):
    cameras = [f"camera{index}" for index in range(count)]
    limit = tiny_config(family).policy_config.max_cameras or 4
    if count > limit:
        with pytest.raises(StrictDataclassError, match=f"cameras={count} is above policy_config.max_cameras={limit}"):
            tiny_config(family, cameras=cameras)
        return
    config = tiny_config(family, cameras=cameras, alignment=None)
    model = random_model(config)
    output = model.policy(config.fake_batch(), taps=[1])
    assert output.taps[1].shape == (2, count, 16, config.policy_config.width)


def test_image_of_missing_camera_is_ignored(model):
    batch = model.config.fake_batch()
    batch["camera_mask"] = torch.eye(2, len(model.config.cameras), dtype=torch.bool)
    other = dict(batch, images=batch["images"].clone())
    other["images"][~batch["camera_mask"]] = 255
    first, second = (
        model.predict_action_chunk(**observation(inputs), generator=seeded_generator()) for inputs in (batch, other)
    )
    torch.testing.assert_close(first, second)
    present = dict(batch, camera_mask=torch.ones_like(batch["camera_mask"]))
    assert not torch.allclose(first, model.predict_action_chunk(**observation(present), generator=seeded_generator()))


def test_prompt_padding_does_not_change_actions(model):
    batch = observation(model.config.fake_batch(batch_size=1))
    longer = dict(batch)
    longer["input_ids"] = torch.nn.functional.pad(batch["input_ids"], (0, 5), value=9)
    longer["attention_mask"] = torch.nn.functional.pad(batch["attention_mask"], (0, 5))
    first, second = (model.predict_action_chunk(**inputs, generator=seeded_generator()) for inputs in (batch, longer))
    torch.testing.assert_close(first, second)


def test_loss_is_finite_for_sample_without_camera_and_prompt(model):
    batch = model.config.fake_batch()
    batch["camera_mask"][0] = False
    batch["attention_mask"][0] = 0
    loss = total(model.train()(**batch, targets=model.config.fake_targets(), generator=seeded_generator()).losses)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_uint8_and_float_images_give_same_actions(model):
    batch = observation(model.config.fake_batch())
    floats = dict(batch, images=batch["images"].float() / 255)
    first, second = (model.predict_action_chunk(**inputs, generator=seeded_generator()) for inputs in (batch, floats))
    assert torch.equal(first, second)


def test_alignment_head_does_not_change_actions(model):
    batch = observation(model.config.fake_batch())
    plain = model.for_inference()
    assert plain.alignment_head is None and plain.config.alignment is None
    first, second = (policy.predict_action_chunk(**batch, generator=seeded_generator()) for policy in (model, plain))
    assert torch.equal(first, second)


def test_for_inference_shares_weights_and_does_not_change_model(model):
    model.train()
    plain = model.for_inference()
    assert model.training and not plain.training and model.alignment_head is not None
    assert plain.policy.embed_tokens.weight.data_ptr() == model.policy.embed_tokens.weight.data_ptr()
    assert {name for name in model.state_dict() if not name.startswith("alignment_head.")} == set(plain.state_dict())


def test_no_split_modules_exist_in_model(model):
    """Check the names because FSDP fails on one that the model does not have."""
    assert model._no_split_modules
    assert model._no_split_modules <= {type(module).__name__ for module in model.modules()}


def test_only_tapped_layers_stay_in_memory(family):
    """Check that without gradients K taps keep K tensors of image tokens and no whole residual stream."""
    config = tiny_config(family, alignment=None)
    model, batch = random_model(config), config.fake_batch()
    tokens, width = len(config.cameras) * 16, config.policy_config.width
    prompt = batch["input_ids"].shape[1]

    def tensors_in_memory() -> dict[str, int]:
        gc.collect()
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in gc.get_objects()
            if type(tensor) is torch.Tensor and tensor.shape[-1:] == (width,)
        }
        sizes = list(storages.values())
        return {
            "images": sizes.count(2 * tokens * width * 4),
            "streams": sum(size >= 2 * (tokens + prompt) * width * 4 for size in sizes),
        }

    before = tensors_in_memory()
    for taps in ([], [1], [1, 3], [0, 1, 2, 3]):
        with torch.no_grad():
            output = model.policy({key: value for key, value in batch.items() if key != "actions"}, taps=taps)
            training = model.policy(batch, taps=taps)
        after = tensors_in_memory()
        assert after["images"] - before["images"] == 2 * len(taps)
        assert after["streams"] == before["streams"]
        assert len(output.taps) == len(training.taps) == len(taps)
        del output, training


def test_gradient_checkpointing_does_not_change_gradients(model):
    batch, targets = model.config.fake_batch(), model.config.fake_targets()
    model.train()
    total(model(**batch, targets=targets, generator=seeded_generator()).losses).backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    layer = model.policy.layers[0]
    calls = []
    mlp = next(module for name, module in layer.named_modules() if name.endswith("mlp"))
    mlp.register_forward_pre_hook(lambda *_: calls.append(1))  # recomputation may stop before the module's end
    total(model(**batch, targets=targets, generator=seeded_generator()).losses).backward()
    assert len(calls) == 2, "one forward and one recomputation: a single level of checkpointing"
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


def test_eager_attention_equals_sdpa(model):
    batch, targets = model.config.fake_batch(), model.config.fake_targets()
    losses, actions = {}, {}
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        for name in model.config.policy_config.sub_configs:
            assert getattr(model.config.policy_config, name)._attn_implementation == implementation
        losses[implementation] = total(model(**batch, targets=targets, generator=seeded_generator()).losses)
        actions[implementation] = model.predict_action_chunk(**observation(batch), generator=seeded_generator())
    torch.testing.assert_close(losses["sdpa"], losses["eager"])
    torch.testing.assert_close(actions["sdpa"], actions["eager"], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="must be one of eager, sdpa"):
        model.set_attn_implementation("flash_attention_2")


def test_compiled_forward_equals_eager_forward(model):
    batch, targets = model.config.fake_batch(), model.config.fake_targets()
    drawn = noise_and_time(model.config, 2)
    expected = model(**batch, targets=targets, **drawn).losses
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    losses = compiled(**batch, targets=targets, **drawn).losses
    for name in expected:
        torch.testing.assert_close(losses[name], expected[name])


def test_bfloat16_is_close_to_float32(model):
    batch, targets = model.config.fake_batch(), model.config.fake_targets()
    exact = model(**batch, targets=targets, generator=seeded_generator()).losses
    actions = model.predict_action_chunk(**observation(batch), generator=seeded_generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(**batch, targets=targets, generator=seeded_generator()).losses
    half = model.for_inference().to(torch.bfloat16)
    half_actions = half.predict_action_chunk(**observation(batch), generator=seeded_generator())
    for name in exact:
        torch.testing.assert_close(mixed[name], exact[name], rtol=0.1, atol=0.05)
    assert half_actions.dtype == torch.float32
    assert (half_actions - actions).abs().mean() < 0.05 * actions.abs().mean()
