# Solutions of exercises 9.2: flashlite.engine.predictors.copy_predictor as the engine runs it.
"""A predictor that needs no training: the deciding matrix itself, rounded to int8 and kept in DRAM.

It says which neurons fire by the product that decides it, as far as rounding lets it. The threshold is lowered by what
rounding may do, so hardly any neuron is missed, and few are named that don't fire. It takes more DRAM than a trained
predictor, and all of it is multiplied for every token. Beyond the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from flashlite.engine.predictor import INT8_BLOCK, Int8Matrix
from flashlite.families.activation import Activation
from flashlite.storage.bundle import FFNShape, round_up
from flashlite.storage.neurons import NeuronFile

ERRORS = 2.0  # standard errors of the rounding by which the threshold is lowered
STEP_ERROR = 12**-0.5  # standard error of rounding to whole steps, in steps
BF16_STEP = 2.0**-8  # of a bf16 number, relative


def margin(x: Tensor, scale: Tensor, errors: float = ERRORS) -> Tensor:
    """How far rounding may move the products of x with a matrix's rows, but for few of them: [tokens, ffn] float32.

    x: [tokens, d_model]
    scale: [ffn], the step in which each row was rounded
    errors: how many standard errors this is
    """
    # 9.2  Variances of independent errors add up, so the standard deviation grows with the root of the sum of squares:
    # the norm of x. The worst that could happen, every weight half a step off in the wrong direction, grows with the
    # sum of the absolute values, some ten times as much, and hardly ever comes near; a margin of that size would name
    # many neurons that don't fire. With two standard deviations only one in forty of those products is missed that lie
    # on the very threshold, and further away, where most are, none.
    # Usual mistakes: the worst case (half a step times the sum of absolute values) instead of the standard deviation;
    # the square of the norm; the mean of squares in place of their sum; one norm for all tokens together; squares in
    # float16, which ends at 65504; leaving out `errors`.
    # each weight is wrong by another error than its neighbour: they partly cancel, and their variances add up
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
    return norm * (errors * STEP_ERROR * scale.float())


class CopyPredictor:
    """A rounded copy of the matrix that decides which neurons of a layer fire.

    matrix: [ffn, d_model], both padded to whole blocks
    bias: [ffn], of this matrix
    activation: says from where on a product fires
    """

    def __init__(self, matrix: Int8Matrix, bias: Tensor, activation: Activation) -> None:
        self._matrix, self._neurons = matrix, len(bias)
        empty = (0, len(matrix.scale) - len(bias))
        limit = activation.threshold - bias.float()
        self._limit = pad(limit - BF16_STEP * limit.abs(), empty, value=torch.inf)  # padding never fires
        self.nbytes = matrix.nbytes + self._limit.nbytes

    @classmethod
    def read(cls, file: NeuronFile, layer: int, bias: Tensor, activation: Activation) -> CopyPredictor:
        """Round a layer's deciding matrix as it is read from flash, part by part. Raises ReadError."""
        neurons, width = _padded(file.shape)
        values, scale = torch.zeros(neurons, width, dtype=torch.int8), torch.zeros(neurons, dtype=torch.bfloat16)
        for part, rows in file.first_rows(layer, bias.dtype):
            rounded, scale[part] = Int8Matrix.round(rows.float())
            values[part, : rows.shape[1]] = rounded
        return cls(Int8Matrix(values, scale), bias, activation)

    @staticmethod
    def bytes_needed(shape: FFNShape) -> int:
        """The DRAM that one layer's takes."""
        neurons, width = _padded(shape)
        return neurons * (width + 2 + 4)

    @staticmethod
    def int8_weights(shape: FFNShape) -> int:
        """How many of one layer's weights are int8."""
        neurons, width = _padded(shape)
        return neurons * width

    def scores(self, x: Tensor) -> Tensor:
        """[tokens, ffn] float32, positive where a neuron may fire. x: [tokens, d_model]."""
        width = self._matrix.values.shape[1]
        product = self._matrix(pad(x, (0, width - x.shape[1])).bfloat16()).float()
        return product.sub_(self._limit).add_(margin(x, self._matrix.scale))[:, : self._neurons]

    def mask(self, x: Tensor) -> Tensor:
        """See Predictor."""
        return self.scores(x) > 0


def _padded(shape: FFNShape) -> tuple[int, int]:
    """Rows and columns of a layer's copy: whole blocks, which torch's product reads."""
    return round_up(shape.neurons, INT8_BLOCK), round_up(shape.d_model, INT8_BLOCK)
