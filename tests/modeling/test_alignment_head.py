"""Tests of the alignment head against an explicit loop, and of its edge cases."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from rocket_hf.modeling.alignment_head import AlignmentHead
from rocket_hf.modeling.configuration_rocket import AlignmentConfig

B, V, T, WIDTH, DEPTH = 3, 2, 5, 12, 4
PAIRS = {"student_layers": [1, 2, -1], "teacher_layers": [7, 3, 7], "hidden_width": 20, "target_width": 16}
VARIANTS = {
    "shared": {"nesting": "none"},
    "rocket": {"nesting": "increasing"},
    "reversed": {"nesting": "decreasing"},
    "explicit": {"nesting": "explicit", "nested_widths": [3, 20, 3]},
    "independent": {"projector": "independent", "nesting": "none"},
    "single": {"student_layers": [2], "teacher_layers": [3], "nesting": "none"},
}


def create_head(name: str = "rocket", **changes) -> AlignmentHead:
    torch.manual_seed(0)
    head = AlignmentHead(AlignmentConfig(**(PAIRS | VARIANTS[name] | changes)), WIDTH, DEPTH)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head


def random_inputs(seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    taps = {layer: torch.randn(B, V, T, WIDTH, generator=draw, requires_grad=True) for layer in (1, 2, 4)}
    targets = {layer: torch.randn(B, V, T, 16, generator=draw) for layer in (3, 7)}
    return taps, targets, torch.tensor([[True, True], [True, False], [False, True]])


def loop_losses(head: AlignmentHead, taps, targets, camera_mask) -> dict[str, torch.Tensor]:
    """Compute the losses with loops over pairs, samples and cameras, and a mask of the hidden units."""
    losses = {}
    for index, ((student, teacher), width) in enumerate(zip(head.pairs, head.widths, strict=True)):
        projector = head.projectors[index if len(head.projectors) > 1 else 0]
        samples = []
        for sample in range(B):
            cameras = []
            for camera in range(V):
                if not camera_mask[sample, camera]:
                    continue
                hidden = F.gelu(projector.fc1(projector.norm(taps[student][sample, camera])))
                hidden = hidden * (torch.arange(hidden.shape[-1]) < width)
                cosine = F.cosine_similarity(projector.fc2(hidden), targets[teacher][sample, camera], dim=-1)
                cameras.append((1 - cosine).mean())
            samples.append(torch.stack(cameras).mean())
        losses[f"alignment/{student}-{teacher}"] = torch.stack(samples).mean()
    return losses


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_and_gradients_equal_those_of_loop(name):
    head = create_head(name)
    taps, targets, mask = random_inputs()
    variables = [*taps.values(), *head.parameters()]
    losses, expected = head(taps, targets, mask), loop_losses(head, taps, targets, mask)
    assert losses.keys() == expected.keys()
    for key in losses:
        torch.testing.assert_close(losses[key], expected[key])
    actual_gradients, expected_gradients = (
        torch.autograd.grad(sum(named.values()), variables, allow_unused=True) for named in (losses, expected)
    )
    for actual, reference in zip(actual_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(actual, reference)


def test_gradients_agree_with_finite_differences():
    """Compare directional derivatives along random directions of all taps and weights together."""
    head = create_head("rocket")
    taps, targets, mask = random_inputs()
    variables = [*taps.values(), *head.parameters()]
    gradients = torch.autograd.grad(sum(head(taps, targets, mask).values()), variables)
    step = 1e-2
    for seed in range(4):
        draw = torch.Generator().manual_seed(seed)
        directions = [torch.randn(tensor.shape, generator=draw) / 10 for tensor in variables]
        expected = sum((gradient * direction).sum() for gradient, direction in zip(gradients, directions, strict=True))
        sums = []
        with torch.no_grad():
            for sign in (1, -2):
                for tensor, direction in zip(variables, directions, strict=True):
                    tensor += sign * step * direction
                sums.append(sum(head(taps, targets, mask).values()))
            for tensor, direction in zip(variables, directions, strict=True):
                tensor += step * direction
        torch.testing.assert_close((sums[0] - sums[1]) / (2 * step), expected, atol=1e-3, rtol=1e-3)


def test_shared_projector_is_registered_once_and_has_published_size():
    """Check that the published sizes have 12,595,200 parameters for OpenVLA and 8,396,800 for pi0."""
    assert len(create_head("rocket").projectors) == 1
    assert len(create_head("independent").projectors) == 3
    with torch.device("meta"):
        for stream, expected in ((4096, 12_595_200), (2048, 8_396_800)):
            head = AlignmentHead(AlignmentConfig(), stream, 18)
            assert sum(parameter.numel() for parameter in head.parameters()) == expected
    names = {name for name, _ in create_head("rocket").named_parameters()}
    assert names == {f"projectors.0.{layer}.{kind}" for layer in ("norm", "fc1", "fc2") for kind in ("weight", "bias")}


def test_pair_trains_only_its_hidden_units():
    head = create_head("rocket")
    taps, targets, mask = random_inputs()
    head(taps, targets, mask)["alignment/1-7"].backward()
    has_gradient = head.projectors[0].fc1.weight.grad.abs().sum(1) > 0
    assert has_gradient.tolist() == [unit < head.widths[0] for unit in range(20)]
    assert torch.equal(head.projectors[0].fc2.weight.grad.abs().sum(0) > 0, has_gradient)


def test_every_tap_gets_gradient_and_targets_get_none():
    head = create_head("rocket")
    taps, targets, mask = random_inputs()
    targets = {layer: target.requires_grad_() for layer, target in targets.items()}
    sum(head(taps, targets, mask).values()).backward()
    assert all(target.grad is None for target in targets.values())
    assert all(tap.grad.abs().sum() > 0 for tap in taps.values())


def test_missing_cameras_have_no_loss_and_no_gradient():
    head = create_head("rocket")
    taps, targets, mask = random_inputs()
    changed = {layer: torch.where(mask[:, :, None, None], tap, 1e6) for layer, tap in taps.items()}
    for key, loss in head(taps, targets, mask).items():
        torch.testing.assert_close(head(changed, targets, mask)[key], loss)
    sum(head(taps, targets, mask).values()).backward()
    assert all((tap.grad[~mask] == 0).all() for tap in taps.values())


def test_tokens_without_target_are_ignored():
    """Check that tokens whose target is zero do not change the loss of the other tokens."""
    head = create_head()
    taps, targets, camera_mask = random_inputs()
    for target in targets.values():
        target[:, :, 3:] = 0
    losses = head(taps, targets, camera_mask)
    torch.stack(list(losses.values())).sum().backward()
    assert all((tap.grad[:, :, 3:] == 0).all() and tap.grad[0, 0, 0].any() for tap in taps.values())
    remaining = [{layer: value[:, :, :3] for layer, value in part.items()} for part in (taps, targets)]
    torch.testing.assert_close(losses, head(*remaining, camera_mask))


def test_losses_and_gradients_are_finite_without_cameras_and_with_zero_vectors():
    head = create_head("rocket")
    taps, targets, mask = random_inputs()
    mask[0] = False
    targets[7][1] = 0
    losses = head(taps, targets, mask)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(tap.grad).all() for tap in taps.values())
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)  # now every projection is the zero vector
    head.zero_grad()
    losses = head(taps, targets, mask)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())
    losses = head(taps, targets, torch.zeros_like(mask))
    assert all(loss == 0 for loss in losses.values())


def test_norms_and_cosines_are_float32_under_autocast():
    """Check that the loss is float32 and differs from the exact one only by the rounding of matrix products."""
    head = create_head("rocket", hidden_width=256, target_width=16)
    taps, targets, mask = random_inputs()
    exact = head(taps, targets, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = head({layer: tap.bfloat16() for layer, tap in taps.items()}, targets, mask)
    for key in exact:
        assert mixed[key].dtype == torch.float32
        torch.testing.assert_close(mixed[key], exact[key], atol=2e-2, rtol=0)


def test_forward_and_backward_do_not_synchronize_with_device():
    """Run on fake tensors, which hold no values, so that reading one on the host raises."""
    with FakeTensorMode(allow_non_fake_inputs=False):
        head = AlignmentHead(AlignmentConfig(**PAIRS), WIDTH, DEPTH)
        taps = {layer: torch.randn(B, V, T, WIDTH, requires_grad=True) for layer in (1, 2, 4)}
        targets = {layer: torch.randn(B, V, T, 16) for layer in (3, 7)}
        losses = head(taps, targets, torch.ones(B, V, dtype=torch.bool))
        sum(losses.values()).backward()
