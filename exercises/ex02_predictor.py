# Exercises 2.1, 2.2. With `--impl ref,ex02=mine` this file takes the place of flashlite.engine.predictor.
# Everything without a TODO is provided, and runs as it stands.
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
    # TODO 2.1  the active set (2 points, 5 minutes, paper section 3.1)
    # Return the neurons that must be in DRAM before this layer can be computed: all that at least one of the tokens
    # needs, each once, in rising order, as a NumPy array [n] of int64 neuron numbers. A predictor says it token by
    # token: predictor.mask(x) is [tokens, ffn] bool, True where the token needs the neuron.
    # There may be one token (while generating) or many (a prompt, a batch). If no token needs any neuron, the array is
    # empty, of shape (0,) and still int64, because it is used as an index.
    # Example: two tokens, six neurons:
    #   mask = [[0 1 0 0 1 0],
    #           [0 1 0 1 0 0]]   -> [1 3 4]
    # Provided: predictor.mask, see class Predictor above; it is called with x as it is. The mask is a torch tensor; its
    # .numpy() is the same memory as a NumPy array.
    # In the engine: flashlite bench --stage 2 --impl ref,ex02=mine
    raise NotImplementedError("exercise 2.1: delete this line and write active_set, see the TODO above")


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
        # TODO 2.2  the predictor's forward (warm-up, 10 minutes, paper section 3.1; int8 weights are beyond the paper)
        # Score every neuron for every token: take x through the thin matrix self.a to [tokens, rank], from there
        # through self.b to [tokens, ffn], and add self.bias [ffn]. There is nothing between the two matrices and
        # nothing after them: a neuron should fire where its score is above 0.
        # x is [tokens, d_model], float32, float16 or bfloat16, one token or many. The matrices only take bfloat16.
        # Return bfloat16 [tokens, ffn]. Leave x, self.bias and the matrices as they are.
        # Example: in small, with one token (real sizes are multiples of 32):
        #   x = [[3 1]]   a = [[1 -1]]   b = [[2] [-1]]   bias = [-1 0.5]
        #   a x = [[2]]   b a x = [[4 -2]]   scores = [[3 -1.5]]: neuron 0 should fire, neuron 1 not
        # Provided: self.a and self.b are Int8Matrix objects: called like a function they multiply, scale included.
        # self.bias has the calibrated threshold in it, already subtracted.
        # In the engine: flashlite bench --stage 2 --impl ref,ex02=mine
        raise NotImplementedError("exercise 2.2: delete this line and write scores, see the TODO above")

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
