"""Which neurons will fire, known before their weights are read. (Paper: section 3.1, predicting ReLU sparsity)

A predictor gets the input of a layer's FFN, x [tokens, d_model], and says for each token which neurons it needs.
`active_set` gives the neurons that any of the tokens needs: [n] int64, sorted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from flashlite.engine.kernels.rows import FEW, products
from flashlite.errors import PredictorError
from flashlite.families.activation import RELU, Activation
from flashlite.storage.neurons import NeuronFile

INT8_BLOCK = 32  # torch's int8 product reads whole blocks, even beyond the end of a matrix


class Predictor(Protocol):
    """Says which neurons of one layer fire.

    nbytes: the DRAM that it takes
    """

    nbytes: int

    def mask(self, x: Tensor) -> Tensor:
        """Which neurons each token needs: [tokens, ffn] bool. x: [tokens, d_model]."""


def active_set(predictor: Predictor, x: Tensor) -> np.ndarray:
    """The neurons that at least one token needs: [n] int64, sorted. x: [tokens, d_model]."""
    mask = predictor.mask(x)
    return np.flatnonzero(mask[0].numpy() if len(mask) == 1 else mask.any(0).numpy())


@dataclass(frozen=True)
class Int8Matrix:
    """A weight matrix in a quarter of float32's memory: values [out, in] int8, scale [out] bf16."""

    values: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        out, inside = self.values.shape
        if out % INT8_BLOCK or inside % INT8_BLOCK or not self.values.is_contiguous():
            raise PredictorError(
                f"a predictor's matrix is {out} x {inside}, not multiples of {INT8_BLOCK}: change its rank"
            )

    @classmethod
    def of(cls, weight: Tensor) -> Int8Matrix:
        """Round a matrix of floats. weight: [out, in]."""
        return cls(*cls.round(weight))

    @staticmethod
    def round(weight: Tensor) -> tuple[Tensor, Tensor]:
        """The values and the scale of a matrix of floats, of any size. weight: [out, in]."""
        scale = (weight.abs().amax(1) / 127).clamp(min=1e-12).bfloat16()
        values = (weight / scale.float()[:, None]).round_().clamp_(-127, 127)
        return values.to(torch.int8).contiguous(), scale

    def __call__(self, x: Tensor) -> Tensor:
        """x W^T. x: [tokens, in] bfloat16. Returns [tokens, out] bfloat16."""
        if len(x) > FEW:
            return torch._weight_int8pack_mm(x, self.values, self.scale)
        return products(x.float(), self.values, np.arange(len(self.values))).mul_(self.scale).bfloat16()

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.values.nbytes + self.scale.nbytes


class LowRankPredictor:
    """Two thin matrices that stand in for the up projection: where a neuron's score is positive, it should fire.

    a: [rank, d_model]
    b: [ffn, rank]
    bias: [ffn] bfloat16, from which the calibrated threshold is already subtracted

    The weights are int8, because only a score's sign must be right, and because each byte that a predictor takes is
    missing for neurons.
    """

    def __init__(self, a: Int8Matrix, b: Int8Matrix, bias: Tensor) -> None:
        self.a, self.b, self.bias = a, b, bias.bfloat16()
        self.nbytes = a.nbytes + b.nbytes + self.bias.nbytes

    @classmethod
    def of(cls, a: Tensor, b: Tensor, bias: Tensor) -> LowRankPredictor:
        """Make a predictor of float matrices, which are rounded. a: [rank, d_model]; b: [ffn, rank]; bias: [ffn]."""
        return cls(Int8Matrix.of(a), Int8Matrix.of(b), bias)

    @property
    def rank(self) -> int:
        """The width of the bottleneck."""
        return len(self.a.values)

    @property
    def int8_weights(self) -> int:
        """How many of its weights are int8."""
        return self.a.values.numel() + self.b.values.numel()

    def scores(self, x: Tensor) -> Tensor:
        """Scores [tokens, ffn] bfloat16, positive where a neuron should fire. x: [tokens, d_model]."""
        return self.b(self.a(x.bfloat16())).add_(self.bias)

    def mask(self, x: Tensor) -> Tensor:
        """See Predictor."""
        return self.scores(x) > 0


class OraclePredictor:
    """The true active set, computed by reading the whole up projection from flash for every token.

    It makes every stage exact, so it separates the system's errors from the predictor's. It is slow. Its reads
    and its buffer of 1 MiB are not counted among the model's.

    file: the neurons on flash; in the split layout only the rows that decide are read
    layer: its number
    bias: [ffn], the up projection's; where neurons are gated, the gate's
    activation: says by a neuron's product with the input, bias included, whether it fires
    """

    def __init__(self, file: NeuronFile, layer: int, bias: Tensor, activation: Activation = RELU) -> None:
        self.nbytes = 0
        self._file, self._layer, self._bias, self._fires = file, layer, bias, activation.fires

    def mask(self, x: Tensor) -> Tensor:
        """See Predictor."""
        parts = self._file.first_rows(self._layer, x.dtype)
        return torch.cat([self._fires(torch.addmm(self._bias[part], x, rows.T)) for part, rows in parts], 1)
