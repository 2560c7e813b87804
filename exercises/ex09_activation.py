# Exercises 9.1. With `--impl ref,ex09=mine` this file takes the place of flashlite.families.activation.
# Everything without a TODO is provided, and runs as it stands.
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
        # TODO 9.1  what a neuron computes, gated or not (4 points, 15 minutes, paper section 4.1; gated neurons are
        # beyond it)
        # Turn the neurons' products with the input into their values. first: [tokens, n], the products, bias included,
        # that decide which neurons fire. A neuron's value is
        #   first          where first > self.threshold
        #   0              elsewhere
        # and if self.power is 2 (squared ReLU) the square of this. second: [tokens, n], the second products of gated
        # neurons: the value is then multiplied by second, or, if self.both (dReLU), by second where that is above 0 and
        # by 0 elsewhere. Without a second matrix, second is None, and self.both means nothing.
        # self.power is 1 or 2, self.threshold is 0 or above. Write the values into the memory of first and return
        # first: a prompt has thousands of tokens, and a second matrix of this size would take DRAM that was meant for
        # neurons. You may change second. Both are float32, bfloat16 or float16.
        # The command that runs yours in the engine measures the small gated model that chapter 9's cells write: run the
        # notebook's cells down to its gated bundles first.
        # Example: first = [[-1 0.5 1 2]], second = [[5 5 5 -5]]
        #   ReLU, not gated                  -> [[0 0.5 1 2]]
        #   squared ReLU, not gated          -> [[0 0.25 1 4]]
        #   FATReLU, threshold 1, not gated  -> [[0 0 0 2]]          not above 1 is 0, and 2 stays 2
        #   ReLU, gated                      -> [[0 2.5 5 -10]]
        #   dReLU                            -> [[0 2.5 5 0]]
        # Provided: threshold(x, t, 0.0, inplace=True) of torch writes 0 into x wherever it isn't above t.
        # self.fires(first), above, says where values may differ from 0.
        # In the engine: flashlite bench .flashlite/gated --stage 5 --predictor copy --impl ref,9.1=mine
        raise NotImplementedError("exercise 9.1: delete this line and write __call__, see the TODO above")


RELU = Activation()
