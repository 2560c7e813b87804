# Solutions of exercises 2.5: flashlite.engine.product as the engine runs it.
"""The sparse product: an FFN's output from the rows of the neurons that are in DRAM. (Paper: section 3.3)

Its two halves use the fastest products that torch has where the number of rows differs from token to token. A GPU
multiplies all rows at once: it compiles nothing for their number, and choosing among them would make the host wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import gcd

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from flashlite.families.activation import Activation
from flashlite.storage.bundle import unpack_bundles

WIDE, BLOCK = 1024, 64  # rows; a bf16 product is put together from multiples of these
FEW = 2**18  # weights; reading that many takes less time than choosing among their rows
OfRows = Callable[[Tensor, Tensor, Tensor, int], Tensor]  # what some neurons compute, from x, rows, bias and d_model


@dataclass(frozen=True)
class RowProducts:
    """How neurons are multiplied where they lie, one a row.

    values: their values [tokens, n], see `values_of`
    product: the part of an FFN that they compute, see `ffn_product`
    down: the second half of that, from their values, rows, bias and d_model, see `down_product`
    """

    values: OfRows
    product: OfRows
    down: OfRows


def ffn_product(x: Tensor, rows: Tensor, bias: Tensor, d_model: int) -> Tensor:
    """The part of an FFN that these neurons compute, without the down projection's bias.

    x: [tokens, d_model]; rows: [n, at least 2 * d_model], each a neuron; bias: [n], the up projection's.
    Returns relu(x up^T + bias) down: [tokens, d_model].
    """
    # 2.5  A neuron that doesn't fire contributes exactly 0, so leaving it out changes nothing: the product over the
    # loaded rows is the dense one. Of the neurons that were predicted only a third fire, so the second product needs a
    # third of the rows: down_product reads no others. ReLU works in place on the first product's fresh result, never on
    # rows.
    # Usual mistakes: adding the bias after the ReLU, or not at all; no ReLU (a predictor also loads neurons that don't
    # fire); mixing up the two halves of a row; taking half of the padded row; ReLU in place on something that isn't a
    # fresh result.
    up, _ = unpack_bundles(rows, d_model)
    return down_product(up_product(x, up, bias).relu_(), rows, d_model)


def up_product(x: Tensor, up: Tensor, bias: Tensor) -> Tensor:
    """x up^T + bias: [tokens, n]. x: [tokens, d_model]; up: [n, d_model]; bias: [n].

    n differs from token to token, and torch compiles a bf16 product anew for every shape. Compiling takes as long
    as a third of the product, and half a megabyte stays in memory. So a bf16 product is put together from few shapes:
    as many wide blocks as fit, then as many blocks as fit, and one last block that overlaps the rows before it.
    """
    n = len(up)
    if n < BLOCK or x.dtype == torch.float32 or x.is_cuda:
        return torch.addmm(bias, x, up.T)
    wide, whole = n // WIDE * WIDE, n // BLOCK * BLOCK
    parts = [torch.addmm(bias[part], x, up[part].T) for part in (slice(wide), slice(wide, whole), slice(n - BLOCK, n))]
    parts[2] = parts[2][:, BLOCK - (n - whole) :]
    return torch.cat(parts, 1)


def down_product(h: Tensor, rows: Tensor, d_model: int) -> Tensor:
    """h down: [tokens, d_model], where only the rows of neurons that fired are read, if there are many rows.

    h: [tokens, n], activations
    rows: [n, columns], without gaps; of the columns, at least 2 * d_model, the second d_model are the down projection

    embedding_bag sums some rows with weights, but it takes whole rows. So each row is seen as several units, whose
    length divides both d_model and the padded row, and each unit of the output is a bag of its own.
    """
    if h.is_cuda or (h.dtype == torch.float32 and len(rows) * d_model <= FEW):
        return h @ rows[:, d_model : 2 * d_model]
    unit = gcd(rows.shape[1], d_model)
    first, units = d_model // unit, rows.shape[1] // unit
    fired = (h.any(0) if len(h) > 1 else h[0]).nonzero()[:, 0]
    index = (fired * units + torch.arange(first, 2 * first)[:, None]).expand(len(h), -1, -1)
    weights = h[:, None, fired].expand(index.shape)
    begins = torch.arange(len(h) * first) * len(fired)
    bags = embedding_bag(
        index.reshape(-1), rows.view(-1, unit), begins, mode="sum", per_sample_weights=weights.reshape(-1)
    )
    return bags.view(len(h), d_model)


def values_of(activation: Activation) -> OfRows:
    """How the values of neurons, [tokens, n], follow from x [tokens, d_model], their rows, their biases and d_model.

    rows: [n, at least d_model], or [n, at least 3 * d_model] of gated neurons
    bias: [n], or [2, n] of gated neurons, the gate's first
    """
    return partial(_values, activation)


def any_product_of(activation: Activation) -> OfRows:
    """The product of neurons of a kind, as `ffn_product` is that of OPT's; for rows and bias see `values_of`."""
    return partial(_product, activation)


def _values(activation: Activation, x: Tensor, rows: Tensor, bias: Tensor, d_model: int) -> Tensor:
    first = rows[:, :d_model]
    if bias.ndim == 1:
        return activation(up_product(x, first, bias))
    second = rows[:, 2 * d_model : 3 * d_model]
    return activation(up_product(x, first, bias[0]), up_product(x, second, bias[1]))


def _product(activation: Activation, x: Tensor, rows: Tensor, bias: Tensor, d_model: int) -> Tensor:
    return down_product(_values(activation, x, rows, bias, d_model), rows, d_model)
