"""The copy predictor of a store in int8: the rows that decide are int8 already, so the copy of them is exact.

It names the neurons that fire, and no others, but for the rounding of float32 sums. So it is an oracle that stays in
DRAM, and half as large as all that it foresees.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashlite.engine.int8.product import row_product
from flashlite.families.activation import Activation
from flashlite.storage.bundle import FFNShape
from flashlite.storage.neurons import NeuronFile


class ExactCopy:
    """The matrix that decides which neurons of a layer fire, as it is on flash.

    rows: [ffn, d_model] int8
    scale: [ffn] float32
    bias: [ffn] float32
    activation: says from where on a product fires
    """

    def __init__(self, rows: Tensor, scale: Tensor, bias: Tensor, activation: Activation) -> None:
        self._rows, self._scale, self._bias, self._fires = rows, scale, bias, activation.fires
        self.nbytes = rows.nbytes + scale.nbytes

    @classmethod
    def read(cls, file: NeuronFile, layer: int, bias: Tensor, activation: Activation) -> ExactCopy:
        """Read a layer's deciding matrix from flash, part by part. Raises ReadError."""
        rows = torch.empty(file.shape.neurons, file.shape.d_model, dtype=torch.int8)
        for part, found in file.first_rows(layer, torch.int8):
            rows[part] = found
        return cls(rows, file.first_scale(layer), bias, activation)

    @staticmethod
    def bytes_needed(shape: FFNShape) -> int:
        """The DRAM that one layer's takes."""
        return shape.neurons * (shape.half_bytes + torch.float32.itemsize)

    @staticmethod
    def int8_weights(shape: FFNShape) -> int:
        """How many of one layer's weights are int8."""
        return shape.neurons * shape.d_model

    def mask(self, x: Tensor) -> Tensor:
        """See Predictor."""
        return self._fires(row_product(x, self._rows, self._scale, self._bias))
