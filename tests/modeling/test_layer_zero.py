"""Layer 0 of every policy family: the image tokens that the first block reads, and their alignment."""

import contextlib

import torch

from rocket_hf.modeling.configuration_rocket import AlignmentConfig
from rocket_hf.tiny import tiny_config

from .conftest import random_model

PROJECTIONS = ("image_projection", "projector")  # names of the module that maps the vision encoder's output, by family


def test_tap_of_layer_zero_is_what_first_block_reads(family):
    config = tiny_config(family, alignment=None)
    model, batch = random_model(config), config.fake_batch()
    policy, recorded = model.policy, {}
    projection = next(module for name, module in policy.named_children() if name in PROJECTIONS)
    with torch.no_grad(), contextlib.ExitStack() as hooks:
        handle = projection.register_forward_hook(lambda module, args, output: recorded.update(projected=output))
        hooks.callback(handle.remove)
        handle = policy.layers[0].register_forward_pre_hook(lambda module, args: recorded.update(stream=args[0]))
        hooks.callback(handle.remove)
        tap = policy(batch, taps=[0]).taps[0]  # (B, V, T, D)
    scale = config.policy_config.width**0.5 if family == "smolvla" else 1
    projected = (recorded["projected"] * scale).view(tap.shape)
    torch.testing.assert_close(tap, projected)
    tokens = tap.shape[2]
    windows = recorded["stream"].unfold(1, tokens, 1).mT  # (B, starts, T, D)
    for camera in range(tap.shape[1]):
        assert (windows == tap[:, camera, None]).flatten(2).all(dim=2).all(dim=0).sum() == 1


def test_alignment_of_layer_zero_trains_the_vision_encoder_alone(family):
    alignment = AlignmentConfig(
        student_layers=[0], teacher_layers=[-1], nesting="none", hidden_width=32, target_width=24, weight=0.1
    )
    config = tiny_config(family, alignment=alignment)
    model = random_model(config).train()
    losses = model(**config.fake_batch(), targets=config.fake_targets()).losses
    assert [name for name in losses if name.startswith("alignment/")] == ["alignment/0--1"]
    losses["alignment/0--1"].backward()
    gradients = {name: weight.grad for name, weight in model.policy.named_parameters() if weight.grad is not None}
    reached = {name.partition(".")[0] for name, gradient in gradients.items() if gradient.any()}
    assert reached == {"vision_tower", "projector" if family.startswith("openvla") else "image_projection"}
    assert all(weight.grad is not None for weight in model.alignment_head.parameters())
