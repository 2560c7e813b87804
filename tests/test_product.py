"""The two halves of the sparse product: right for any number of rows, by few compiled shapes."""

from __future__ import annotations

import pytest
import torch

import flashlite
from flashlite.engine import product
from flashlite.engine.product import BLOCK, WIDE, down_product, up_product
from flashlite.storage.store import Store

EDGES = (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, WIDE - 1, WIDE, WIDE + 1, WIDE + BLOCK, 2 * WIDE + BLOCK + 3)


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("n", EDGES)
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-4), (torch.bfloat16, 0.2)])
@pytest.mark.parametrize("few", [0, product.FEW])  # weights that are multiplied without a choice among their rows
def test_up_and_down_product(
    n: int, tokens: int, dtype: torch.dtype, allowed: float, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "FEW", few)
    generator = torch.Generator().manual_seed(n)
    x, rows, bias = (torch.randn(s, generator=generator).to(dtype) for s in ((tokens, 96), (n, 192), (n,)))
    h = up_product(x, rows[:, :96], bias)
    torch.testing.assert_close(h, torch.addmm(bias, x, rows[:, :96].T), atol=allowed, rtol=allowed)
    h = h.relu()
    torch.testing.assert_close(down_product(h, rows, 96), h @ rows[:, 96:], atol=20 * allowed, rtol=allowed)


def test_few_shapes_are_multiplied_whatever_the_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, addmm = set(), torch.addmm

    def watched(bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        shapes.add(tuple(weight.shape))
        return addmm(bias, x, weight)

    monkeypatch.setattr(product.torch, "addmm", watched)
    rows = torch.zeros(4 * WIDE, 8, dtype=torch.bfloat16)
    for n in range(0, len(rows), 7):
        up_product(rows[:1], rows[:n], rows[:n, 0])
    assert len({shape for shape in shapes if shape[1] >= BLOCK}) <= WIDE // BLOCK + len(rows) // WIDE


def test_the_head_sees_a_prompt_as_it_sees_a_token(tiny_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the stride of a long prompt's last row torch would choose a product that copies the head's weights."""
    model = flashlite.load(tiny_store, dram_budget="2MB")
    strides, linear = [], torch.nn.functional.linear

    def watched(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if weight is model.lm_head.weight:
            strides.append(x.stride())
        return linear(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    for prompt in ([[5]], [[5, 6, 7, 8, 9, 10, 11]]):
        model(torch.tensor(prompt), logits_to_keep=1)
    assert strides[0] == strides[1]
