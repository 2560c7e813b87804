"""The sparse product: an FFN's output from the rows of the neurons that are in DRAM. (Paper: section 3.3)

Its two halves are compiled products over picked rows, see kernels/rows.py. A GPU takes torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from flashlite.engine.kernels.rows import products, weighted_sum
from flashlite.families.activation import Activation
from flashlite.storage.bundle import unpack_bundles

Picked = np.ndarray | slice  # rows, [n] int64, or a stretch of them
EVERY = slice(None)
OfRows = Callable[..., Tensor]  # what picked neurons compute, from x, rows, bias, d_model and which rows are picked


@dataclass(frozen=True)
class RowProducts:
    """How neurons are multiplied where they lie, one a row.

    values: their values [tokens, n], see `values_of`
    product: the part of an FFN that they compute, see `ffn_product`
    down: the second half of that, from their values, rows, bias, d_model and which rows, see `down_product`
    """

    values: OfRows
    product: OfRows
    down: OfRows


def ffn_product(x: Tensor, rows: Tensor, bias: Tensor, d_model: int) -> Tensor:
    """The part of an FFN that these neurons compute, without the down projection's bias.

    x: [tokens, d_model]; rows: [n, at least 2 * d_model], each a neuron; bias: [n], the up projection's.
    Returns relu(x up^T + bias) down: [tokens, d_model].
    """
    up, _ = unpack_bundles(rows, d_model)
    return down_product(up_product(x, up, bias).relu_(), rows, d_model)


def up_product(x: Tensor, up: Tensor, bias: Tensor, picked: Picked = EVERY) -> Tensor:
    """x up^T + bias, of picked rows: [tokens, n].

    x: [tokens, d_model]
    up: [rows, d_model]
    bias: [rows]
    picked: which rows of up and bias; all unless given
    """
    if x.is_cuda:
        return torch.addmm(bias[picked], x, up[picked].T)
    index = rows_of(picked, len(up))
    return products(x.float(), up, index).add_(bias[picked]).to(x.dtype)


def down_product(h: Tensor, rows: Tensor, d_model: int, picked: Picked = EVERY) -> Tensor:
    """h down, of picked rows: [tokens, d_model]. Only the rows of neurons that fired are read.

    h: [tokens, n], the values of the picked rows' neurons
    rows: [rows, at least 2 * d_model], of which the second d_model columns are the down projection
    d_model: the width of one projection
    picked: which rows; all unless given
    """
    down = rows[:, d_model : 2 * d_model]
    if h.is_cuda:  # to choose among the rows would make the host wait
        return h @ down[picked]
    values = h.float().numpy()
    fired = np.flatnonzero(values[0] if len(values) == 1 else values.any(0))
    weights = torch.from_numpy(values.take(fired, 1))
    return weighted_sum(weights, down, rows_of(picked, len(rows))[fired], d_model).to(h.dtype)


def rows_of(picked: Picked, rows: int) -> np.ndarray:
    """The numbers of picked rows of so many: [n] int64."""
    return np.arange(rows)[picked] if isinstance(picked, slice) else picked


def values_of(activation: Activation) -> OfRows:
    """How the values of neurons, [tokens, n], follow from x, rows, bias, d_model and which rows are picked.

    x: [tokens, d_model]
    rows: [rows, at least d_model], or [rows, at least 3 * d_model] of gated neurons
    bias: [rows], or [2, rows] of gated neurons, the gate's first
    """
    return partial(_values, activation)


def any_product_of(activation: Activation) -> OfRows:
    """The product of neurons of a kind, as `ffn_product` is that of OPT's; for rows and bias see `values_of`."""
    return partial(_product, activation)


def _values(
    activation: Activation, x: Tensor, rows: Tensor, bias: Tensor, d_model: int, picked: Picked = EVERY
) -> Tensor:
    first = rows[:, :d_model]
    if bias.ndim == 1:
        return activation(up_product(x, first, bias, picked))
    second = rows[:, 2 * d_model : 3 * d_model]
    return activation(up_product(x, first, bias[0], picked), up_product(x, second, bias[1], picked))


def _product(activation: Activation, x: Tensor, rows: Tensor, bias: Tensor, d_model: int) -> Tensor:
    return down_product(_values(activation, x, rows, bias, d_model), rows, d_model)
