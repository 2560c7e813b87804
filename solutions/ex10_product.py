# Solutions of exercises 10.2: flashlite.engine.int8.product as the engine runs it.
"""Products with matrices in int8, none of which is ever float32 as a whole.

Every product with int8 weights in the engine is one of these two. A few tokens take the compiled products, which widen
a weight in the processor's registers. For more of them, blocks of rows that the caches hold become float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashlite.engine.kernels.rows import FEW, products, weighted_sum
from flashlite.engine.product import EVERY, Picked, rows_of
from flashlite.storage.int8.rounding import blocks


def row_product(x: Tensor, rows: Tensor, scale: Tensor, bias: Tensor | None = None, picked: Picked = EVERY) -> Tensor:
    """x weights^T + bias of picked rows, where the weights are rows * scale: [tokens, n] float32.

    x: [tokens, width] float32
    rows: [rows, width] int8; their stride may be a whole record's
    scale: [rows] float32
    bias: [rows] float32, or none
    picked: which rows; all unless given
    """
    index = rows_of(picked, len(rows))
    if len(x) <= FEW:
        out = products(x, rows, index)
    else:
        out = x.new_empty(len(x), len(index))
        for part in blocks(len(index), rows.shape[1]):
            torch.mm(x, rows[index[part]].float().T, out=out[:, part])
    out.mul_(scale[picked])
    return out if bias is None else out.add_(bias[picked])


def row_sum(h: Tensor, rows: Tensor, scale: Tensor, picked: Picked = EVERY) -> Tensor:
    """The sum of picked rows' weights by h, where the weights are rows * scale: [tokens, width] float32.

    h: [tokens, n] float32; only rows are read for which it isn't 0 everywhere
    rows, scale, picked: see `row_product`
    """
    # 10.2  In the first product a row's scale is the same for all terms of a sum, so it is applied once, to the result.
    # Here every term belongs to another row, so the scale must come before the sum; but it needn't be applied to a
    # row's weights, because the row is multiplied by the neuron's value as a whole: one multiplication a neuron instead
    # of one a weight, and the rows stay int8. For one token nothing is ever float32 but what is in the processor's
    # registers, so memory moves a quarter of float32's bytes. A prompt multiplies each row with many tokens, which pays
    # for making a part of them float32, as long as the part stays in a cache.
    # Usual mistakes: no scale, or the scale after the sum; the scale of the row with the same number in h instead of
    # the picked one; making all rows float32; reading rows of neurons that don't fire; taking only positive values for
    # fired, or only the first token's; using a neuron's place in h as the number of its row.
    fired, width = h.any(0).nonzero()[:, 0].numpy(), rows.shape[1]
    index = rows_of(picked, len(rows))[fired]
    weights = h[:, fired] * scale[index]
    if len(h) <= FEW:
        return weighted_sum(weights, rows, index, width)
    out = h.new_zeros(len(h), width)
    for part in blocks(len(index), width):
        out.addmm_(weights[:, part], rows[index[part]].float())
    return out
