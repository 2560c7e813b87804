"""What a neuron makes of its products with the input: where it fires, and its value there."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import threshold


@dataclass(frozen=True)
class Activation:
    """A neuron's value is relu(first)^power, and in a gated neuron times its second product. All else gives exactly 0.

    power: 1, or 2 for squared ReLU
    threshold: first products up to here give 0 too, as FATReLU's do
    both: whether the second product passes a ReLU of its own, as dReLU's does
    """

    power: int = 1
    threshold: float = 0.0
    both: bool = False

    def fires(self, first: Tensor) -> Tensor:
        """Where neurons may differ from 0, told by their first products alone: bool, of the same shape."""
        return first > self.threshold

    def __call__(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        """The neurons' values, in the memory of `first`. first, second: [tokens, n]; second is changed too."""
        value = threshold(first, self.threshold, 0.0, inplace=True) if self.threshold else first.relu_()
        if self.power == 2:
            value.square_()
        if second is None:
            return value
        return value.mul_(second.relu_() if self.both else second)


RELU = Activation()
