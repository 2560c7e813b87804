"""Exercise 2.5: the sparse product."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from flashlite.course.checks import expect, require, rng
from flashlite.engine.product import ffn_product

TOKENS, NEURONS, D_MODEL, PADDING = 5, 40, 24, 8


def inputs(neurons: int = NEURONS, padding: int = PADDING) -> tuple[Tensor, Tensor, Tensor]:
    """x, rows and bias; what is in the rows' padding would spoil every result that it entered."""
    random = rng()
    x = random.standard_normal((TOKENS, D_MODEL))
    rows = np.full((neurons, 2 * D_MODEL + padding), np.nan)
    rows[:, : 2 * D_MODEL] = random.standard_normal((neurons, 2 * D_MODEL)) / np.sqrt(D_MODEL)
    bias = random.standard_normal(neurons)
    return torch.tensor(x).float(), torch.tensor(rows).float(), torch.tensor(bias).float()


@pytest.mark.points("2.5", 1)
def test_product_of_the_loaded_neurons() -> None:
    for padding in (0, PADDING):
        check_product(padding)


def check_product(padding: int) -> None:
    """The product of all neurons is that of float64."""
    tensors = inputs(padding=padding)
    x, rows, bias = (tensor.double().numpy() for tensor in tensors)
    up, down = rows[:, :D_MODEL], rows[:, D_MODEL : 2 * D_MODEL]
    plain = x @ up.T
    mistakes = {
        "The up projection's bias is missing.": np.maximum(plain, 0) @ down,
        "There is no ReLU: neurons that don't fire must contribute 0.": (plain + bias) @ down,
        "The bias belongs inside the ReLU, not after it.": (np.maximum(plain, 0) + bias) @ down,
        "The two halves of a row are mixed up: the up row comes first.": np.maximum(x @ down.T + bias, 0) @ up,
    }
    found = ffn_product(*tensors, D_MODEL)
    expected = np.maximum(plain + bias, 0) @ down
    what = f"product of {NEURONS} neurons in rows with {padding} numbers of padding"
    if padding:
        ends_in_nan = found is not None and bool(found.isnan().any())
        require(not ends_in_nan, f"{what} has NaN", "none", "The padding of a row, or too many columns, was used.")
    expect(found, expected, what, mistakes, 1e-4)


@pytest.mark.points("2.5", 1)
def test_no_neurons_contribute_nothing() -> None:
    expect(ffn_product(*inputs(0), D_MODEL), np.zeros((TOKENS, D_MODEL)), "product of no neurons")


@pytest.mark.points("2.5", 1)
def test_parts_add_up_and_nothing_is_changed() -> None:
    x, rows, bias = tensors = inputs()
    before = [tensor.clone() for tensor in tensors]
    whole = ffn_product(x, rows, bias, D_MODEL)
    for name, tensor, was in zip(("x", "rows", "bias"), tensors, before, strict=True):
        unchanged = torch.equal(tensor.nan_to_num(7), was.nan_to_num(7))
        require(unchanged, f"{name} was changed", "no change", f"The product worked in place on the caller's {name}.")
    parts = [ffn_product(x, rows[part], bias[part], D_MODEL) for part in (slice(0, 7), slice(7, NEURONS))]
    expect(sum(parts), whole, "sum of the products of neurons 0 to 6 and of the others", tolerance=1e-4)
