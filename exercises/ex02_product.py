# Exercises 2.5. With `--impl ref,ex02=mine` this file takes the place of flashlite.engine.product.
# Everything without a TODO is provided, and runs as it stands; where a body is left out, the engine's own runs.
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
    # TODO 2.5  the sparse product from loaded rows (3 points, 10 minutes, paper section 3.3)
    # Compute what the loaded neurons contribute to the FFN's output: relu(x up^T + bias) down, [tokens, d_model].
    # Each row of `rows` is a neuron as it lies in DRAM: its up row, d_model numbers, then its down column, d_model
    # numbers, then padding whose content means nothing and may be anything, NaN included. `bias` [n] belongs to the up
    # projection and to these rows, in their order. The down projection's bias is not added here: it must be added once,
    # and the neurons of one layer may come in several parts whose results are summed.
    # n may be 0: the result is then zeros [tokens, d_model]. rows is the pool's own memory, so neither it nor x nor
    # bias may be changed.
    # Example: d_model = 2, one token x = [[1 2]], two neurons:
    #   rows = [[1  0 10 20]     bias = [1 1]
    #           [0 -1  5  5]]
    #   x up^T + bias = [[2 -1]], after ReLU [[2 0]], result [[20 40]]
    # Provided: unpack_bundles(rows, d_model) gives up [n, d_model] and the transposed down projection [n, d_model], as
    # views of rows. up_product(x, up, bias) gives x up^T + bias [tokens, n], and down_product(h, rows, d_model) gives h
    # down [tokens, d_model] for activations h [tokens, n]; both are faster than torch's own products of the same
    # shapes, and you may use either.
    # In the engine: flashlite bench --stage 2 --impl ref,2.5=mine
    raise NotImplementedError("exercise 2.5: delete this line and write ffn_product, see the TODO above")


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
    # Left out, because it would show how to solve an exercise. The engine's own code runs here.
    raise NotImplementedError("left out here: flashlite runs its own code in place of this")


def _product(activation: Activation, x: Tensor, rows: Tensor, bias: Tensor, d_model: int) -> Tensor:
    # Left out, because it would show how to solve an exercise. The engine's own code runs here.
    raise NotImplementedError("left out here: flashlite runs its own code in place of this")
