# Solutions of exercises 2.5: flashlite.product as the engine runs it.
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
    # 2.5  A neuron that doesn't fire contributes exactly 0, so leaving it out changes nothing: the product over the
    # loaded rows is the dense one. Of the neurons that were predicted only a third fire, so the second product needs a
    # third of the rows: down_product reads no others. ReLU works in place on the first product's fresh result, never on
    # rows.
    # Usual mistakes: adding the bias after the ReLU, or not at all; no ReLU (a predictor also loads neurons that don't
    # fire); mixing up the two halves of a row; taking half of the padded row; ReLU in place on something that isn't a
    # fresh result.
    up, _ = unpack_bundles(rows, d_model)
    return down_product(up_product(x, up, bias).relu_(), rows, d_model)
