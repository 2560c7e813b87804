"""Predictors of a model on a device: their weights lie there, and what they say comes back in one transfer."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import linear

from flashlite.engine.predictor import Int8Matrix, LowRankPredictor, Predictor
from flashlite.engine.predictors.choice import Choice
from flashlite.engine.predictors.copy_predictor import CopyPredictor


class WideMatrix(Int8Matrix):
    """An Int8Matrix on a device, where a value takes the two bytes of bf16, because torch's int8 product is the CPU's.

    bf16 holds the whole numbers of int8 exactly.
    """

    @classmethod
    def on(cls, device: torch.device, matrix: Int8Matrix) -> WideMatrix:
        """A matrix on a device."""
        return cls(matrix.values.to(device).bfloat16(), matrix.scale.to(device))

    def __call__(self, x: Tensor) -> Tensor:
        """x W^T. x: [tokens, in] bfloat16. Returns [tokens, out] bfloat16."""
        return linear(x, self.values).mul_(self.scale)


class DeviceLowRank(LowRankPredictor):
    """A LowRankPredictor on a device; its scores come back to the host."""

    def __init__(self, predictor: LowRankPredictor, device: torch.device) -> None:
        a, b = (WideMatrix.on(device, matrix) for matrix in (predictor.a, predictor.b))
        super().__init__(a, b, predictor.bias.to(device))

    def scores(self, x: Tensor) -> Tensor:
        """See LowRankPredictor. x lies on the device, and the scores on the host."""
        return super().scores(x).cpu()


class DeviceCopy(CopyPredictor):
    """A CopyPredictor on a device; its scores come back to the host."""

    def __init__(self, predictor: CopyPredictor, device: torch.device) -> None:
        self._matrix, self._neurons = WideMatrix.on(device, predictor._matrix), predictor._neurons
        self._limit = predictor._limit.to(device)
        self.nbytes = self._matrix.nbytes + self._limit.nbytes

    def mask(self, x: Tensor) -> Tensor:
        """See Predictor. x lies on the device, and the mask on the host."""
        return super().mask(x).cpu()


class OnHost:
    """Any other predictor, whose weights stay on the host: it is given x there.

    predictor: the oracle, or one of a user's own
    """

    def __init__(self, predictor: Predictor) -> None:
        self.nbytes, self._predictor = predictor.nbytes, predictor

    def mask(self, x: Tensor) -> Tensor:
        """See Predictor. x lies on the device, and the mask on the host."""
        return self._predictor.mask(x.cpu())


def on_device(choice: Choice, device: torch.device) -> Choice:
    """The predictors of a choice on a device, where their int8 weights take twice as much."""

    def make(layer: int, bias: Tensor) -> Predictor:
        predictor = choice.make(layer, bias.cpu())
        if isinstance(predictor, LowRankPredictor):
            return DeviceLowRank(predictor, device)
        return DeviceCopy(predictor, device) if isinstance(predictor, CopyPredictor) else OnHost(predictor)

    return replace(choice, nbytes=choice.nbytes + choice.int8_weights, make=make)
