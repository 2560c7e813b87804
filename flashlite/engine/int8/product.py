"""Products with matrices in int8, dequantised in blocks that the processor's caches hold.

Every product with int8 weights in the engine is one of these two. `rows` may be rows picked from a pool, whose strides
are whole records; within a row the weights lie side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashlite.storage.int8.rounding import block_rows, blocks


def row_product(x: Tensor, rows: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weights^T + bias, where the weights are rows * scale: [tokens, n] float32.

    x: [tokens, width] float32
    rows: [n, width] int8
    scale: [n] float32
    bias: [n] float32, or none
    """
    out = x.new_empty(len(x), len(rows))
    for part in blocks(*rows.shape):
        torch.mm(x, rows[part].float().T, out=out[:, part])
    out.mul_(scale)
    return out if bias is None else out.add_(bias)


def row_sum(h: Tensor, rows: Tensor, scale: Tensor) -> Tensor:
    """The sum of weights by h, where the weights are rows * scale: h (rows * scale), [tokens, width] float32.

    h: [tokens, n] float32; only rows are read for which it isn't 0 everywhere
    rows: [n, width] int8
    scale: [n] float32
    """
    fired, width = h.any(0).nonzero()[:, 0], rows.shape[1]
    out = h.new_zeros(len(h), width)
    for part in fired.split(block_rows(width)):
        out.addmm_(h[:, part] * scale[part], rows[part].float())
    return out
