"""The two halves of the sparse product: right for any rows that are picked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import flashlite
from flashlite.engine.product import EVERY, down_product, up_product
from flashlite.storage.store import Store


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("n", [0, 1, 3, 4, 65, 1500])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-4), (torch.bfloat16, 0.2)])
def test_up_and_down_product(n: int, tokens: int, dtype: torch.dtype, allowed: float) -> None:
    generator = torch.Generator().manual_seed(n)
    x, rows, bias = (torch.randn(s, generator=generator).to(dtype) for s in ((tokens, 96), (n, 192), (n,)))
    for picked in (EVERY, slice(1, None, 2), np.arange(n)[::-3].copy()):
        h = up_product(x, rows[:, :96], bias, picked)
        index = np.arange(n)[picked]
        up, down = rows[index].split(96, 1)
        torch.testing.assert_close(h, torch.addmm(bias[index], x, up.T), atol=allowed, rtol=allowed)
        h = h.relu()
        torch.testing.assert_close(down_product(h, rows, 96, picked), h @ down, atol=20 * allowed, rtol=allowed)


def test_the_head_sees_a_prompt_as_it_sees_a_token(tiny_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the stride of a long prompt's last row torch would choose a product that copies the head's weights."""
    model = flashlite.load(tiny_store, dram_budget="2MB")
    strides, linear = [], torch.nn.functional.linear

    def watched(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if weight is model.lm_head.weight:
            strides.append(x.stride())
        return linear(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    for prompt in ([[5]] * 9, [[5, 6, 7, 8, 9, 10, 11]] * 9):
        model(torch.tensor(prompt), logits_to_keep=1)
    assert strides[0] == strides[1]
