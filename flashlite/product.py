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
    up, _ = unpack_bundles(rows, d_model)
    return down_product(up_product(x, up, bias).relu_(), rows, d_model)
