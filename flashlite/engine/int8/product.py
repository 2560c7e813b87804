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
    fired, width = h.any(0).nonzero()[:, 0].numpy(), rows.shape[1]
    index = rows_of(picked, len(rows))[fired]
    weights = h[:, fired] * scale[index]
    if len(h) <= FEW:
        return weighted_sum(weights, rows, index, width)
    out = h.new_zeros(len(h), width)
    for part in blocks(len(index), width):
        out.addmm_(weights[:, part], rows[index[part]].float())
    return out
