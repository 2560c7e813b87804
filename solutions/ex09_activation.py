# Solutions of exercises 9.1: flashlite.families.activation as the engine runs it.
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
        # 9.1  All of these have one thing in common: where the first product isn't above the threshold, the value is
        # exactly 0, whatever the second one is. So the first matrix alone decides which neurons may be left out, and
        # predictors never look at the second. GELU and SiLU come near 0 and don't reach it, so nothing can be left out
        # there without an error. Each step works in the memory that is there.
        # Usual mistakes: subtracting the threshold, which is another function (shifted ReLU); squaring what is below 0
        # as well, or the product with second instead of the ReLU's result; a ReLU on second where only dReLU has one,
        # or none where it has; a new matrix for the result.
        value = threshold(first, self.threshold, 0.0, inplace=True) if self.threshold else first.relu_()
        if self.power == 2:
            value.square_()
        if second is None:
            return value
        return value.mul_(second.relu_() if self.both else second)


RELU = Activation()
