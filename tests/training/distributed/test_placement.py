"""Precision of matrix products in training."""

import pytest
import torch
import torch.nn.functional as F

from rocket_hf.training.distributed.placement import matmul_precision


def settings():
    return torch.get_float32_matmul_precision(), torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="checks the setting of CPUs")
def test_precision_is_set_inside_the_context_and_restored_after_an_error():
    before = settings()
    inside = []

    def fail():
        with matmul_precision("medium"):
            inside.append(settings())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert inside == [("medium", False)] and settings() == before
    with matmul_precision("high"):
        assert settings() == ("high", before[1])


def test_attention_and_products_agree_between_precisions_within_those_of_bfloat16():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, 20, 32, generator=generator) for _ in range(3))
    mask = torch.zeros(2, 1, 20, 20).masked_fill(torch.rand(2, 1, 20, 20, generator=generator) < 0.3, -1e9)
    results = []
    for precision in ("highest", "medium"):
        with matmul_precision(precision):
            results.append(F.scaled_dot_product_attention(query, key, value, attn_mask=mask) @ value.mT)
    torch.testing.assert_close(results[0], results[1], rtol=2e-2, atol=5e-2)
