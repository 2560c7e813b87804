"""What neurons in int8 compute: in a pool's rows, and as they stream.

A neuron's scales stay with its bias. So where other neurons have a bias [n], or [2, n] of gated neurons, these have a
row for each bias and then a row for each scale, in the order of a record:

    [bias, up scale, down scale]                                     [3, n]
    [gate bias, up bias, gate scale, down scale, up scale]           [5, n] of gated neurons
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from flashlite.engine.int8.product import row_product, row_sum
from flashlite.engine.product import EVERY, Picked, RowProducts
from flashlite.families.activation import Activation
from flashlite.storage.bundle import FFNShape


def bias_bytes(shape: FFNShape) -> int:
    """Bytes of a neuron's biases and scales, which are put together once more beside the resident weights."""
    return 4 * (2 * shape.matrices - 1)


def int8_products(activation: Activation) -> RowProducts:
    """How neurons in int8 are multiplied where they lie. Their rows are int8, and their bias is as said above."""
    return RowProducts(partial(_values_of_rows, activation), partial(_product, activation), _down_product)


def _values_of_rows(
    activation: Activation, x: Tensor, rows: Tensor, bias: Tensor, d_model: int, picked: Picked = EVERY
) -> Tensor:
    return _values(activation, x, rows[:, :d_model], bias, rows[:, 2 * d_model : 3 * d_model], picked)


def _values(
    activation: Activation, x: Tensor, first: Tensor, bias: Tensor, second: Tensor | None, picked: Picked = EVERY
) -> Tensor:
    """The picked neurons' values: [tokens, n]. first, second: [rows, d_model] int8; the second counts if gated."""
    if len(bias) == 3:
        return activation(row_product(x, first, bias[1], bias[0], picked))
    assert second is not None
    gate = row_product(x, first, bias[2], bias[0], picked)
    return activation(gate, row_product(x, second, bias[4], bias[1], picked))


def _down_product(h: Tensor, rows: Tensor, bias: Tensor, d_model: int, picked: Picked = EVERY) -> Tensor:
    return row_sum(h, rows[:, d_model : 2 * d_model], _down_scale(bias), picked)


def _down_scale(bias: Tensor) -> Tensor:
    return bias[len(bias) // 2 + 1]


def _product(activation: Activation, x: Tensor, rows: Tensor, bias: Tensor, d_model: int) -> Tensor:
    return _down_product(_values_of_rows(activation, x, rows, bias, d_model), rows, bias, d_model)


def int8_ffn_of(
    activation: Activation, x: Tensor, first: Tensor, bias: Tensor, down: Tensor, keep: Tensor | None = None,
    second: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`ffn_of` for neurons in int8: first, down and second are int8, and their bias is as said above."""
    h = _values(activation, x, first, bias, second)
    return row_sum(h if keep is None else h * keep, down, _down_scale(bias))
