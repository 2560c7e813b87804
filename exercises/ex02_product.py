# Exercises 2.5. With `--impl ref,ex02=mine` this file takes the place of flashlite.product.
# Everything without a TODO is provided, and runs as it stands.
"""The sparse product: an FFN's output from the rows of the neurons that are in DRAM. (Paper: section 3.3)"""

from __future__ import annotations

from torch import Tensor

from flashlite.bundle import unpack_bundles
from flashlite.kernels import down_product, up_product


def ffn_product(x: Tensor, rows: Tensor, bias: Tensor, d_model: int) -> Tensor:
    """The part of an FFN that these neurons compute, without the down projection's bias.

    x: [tokens, d_model]; rows: [n, at least 2 * d_model], each a neuron; bias: [n], the up projection's.
    Returns relu(x up^T + bias) down: [tokens, d_model].
    """
    # TODO 2.5  the sparse product from loaded rows (4 points, 10 minutes, paper section 3.3)
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
    raise NotImplementedError("exercise 2.5: delete this line and write ffn_product, see the TODO above")
