# Exercises 10.2. With `--impl ref,ex10=mine` this file takes the place of flashlite.engine.int8.product.
# Everything without a TODO is provided, and runs as it stands.
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
    # TODO 10.2  a sum of rows that are int8 (5 points, 20 minutes, paper section 3.3, in int8)
    # The second product of neurons in int8: what they add to the FFN's output. h: [tokens, n] float32, the values of
    # the neurons that are picked; a value is 0 where a neuron doesn't fire, and that of a gated neuron may be negative.
    # Return the sum over the picked neurons, each one's value times its row of weights: [tokens, width] float32.
    # Row i of the weights is rows[i] times scale[i]: rows [rows, width] int8, scale [rows] float32. picked says which
    # rows belong to h's columns, in their order: a slice, or an array of row numbers in any order. rows_of(picked,
    # len(rows)) gives the numbers in both cases: [n] int64, a NumPy array.
    # Two things are counted. Only rows of neurons that fire for at least one of the tokens may be read. And never does
    # all that is picked become float32:
    #   up to FEW tokens: no row does, because weighted_sum reads rows of int8 where they lie
    #   more tokens: torch's own product is faster, and it needs float32
    # So for more tokens take the rows in the parts that blocks gives: make one part float32, multiply it, add it to the
    # sum, and go on.
    # Where nothing is picked or nothing fires, the sum is 0. Leave all arguments as they are.
    # Example: rows = [[1 2], [3 -4], [100 0]], scale = [1 0.5 0.01], picked = [2 1]:
    #   h = [[7 2]]   -> [[10 -4]]      7 * 0.01 * [100 0] + 2 * 0.5 * [3 -4]
    #   h = [[0 2]]   -> [[3 -4]]       only row 1 is read
    # Provided: weighted_sum(h, matrix, rows, width) is for each token the sum of the rows of matrix that the array rows
    # names, each times its number in h, [tokens, number of rows] float32: [tokens, width] float32. blocks(n, width)
    # gives slices of n rows. out.addmm_(a, b) adds a @ b to out. row_product, above, is the first product; its scale
    # comes after the sum.
    # In the engine: flashlite bench --dtype int8 --stage 5 --dram-budget 75% --impl ref,10.2=mine
    raise NotImplementedError("exercise 10.2: delete this line and write row_sum, see the TODO above")
