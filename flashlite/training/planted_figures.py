"""How sparse planted models are, by name, and where these figures come from.

| model | zeros | source |
|---|---|---|
| OPT | 97 % | the paper, section 3.1, OPT-6.7B's layers |
| Falcon-7B | 95 % | the paper; ReLU Strikes Back (Mirzadeh et al. 2023) has 94 % |
| Llama-2-7B | 89 % | ProSparse (Song et al. 2024); plain ReLU's 62 to 67 % would not fit half of the memory |
| Persimmon-8B | 91 % | inferred |
| Phi-2 | 81 % | inferred |

*Inferred*: nobody published how sparse these two are, so the figure follows from the paper's table 3. The bytes that
its I/O times stand for, as a share of the FFNs, are the neurons that are newly loaded for a token. In OPT-6.7B 2.4 %
are newly loaded where 3.3 % fire, and the same ratio is taken for granted here.

How the zeros are spread over layers was published for OPT alone. Falcon's is taken to be like it, because the paper
gives its last layers larger predictors too; Llama's rises in the middle, where the paper gives it larger predictors;
the other two rise slowly, which is a guess.

A predictor misses 5 % of the neurons that fire and names 7 % of those that don't (the paper, section 3.1), so of `a`
neurons it names 0.95 a + 0.07 (1 - a). OPT's names three times as many as fire, as the paper says of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MISSED, NAMED = 0.05, 0.07  # shares of the neurons that fire, and of those that don't
RARELY, OFTEN = 1e-5, 0.6  # how often a neuron fires at least and at most, as a share of tokens
MOST_PREDICTED = 0.9  # how often a neuron is predicted at most


@dataclass(frozen=True)
class Figures:
    """What is planted in a model.

    active: mean share of a layer's neurons that fire for a token, in the first, the middle and the last layer
    predicted_over_active: how many times as many are predicted
    tail: standard deviation of the logarithm of a neuron's rate; smaller where more fire, because none fires always
    square: mean square of a neuron's value where its input has variance 1, by which down projections are scaled
    """

    active: tuple[float, float, float]
    predicted_over_active: float
    tail: float = 1.0
    square: float = 0.01

    def rates(self, depth: float, noise: Tensor) -> Tensor:
        """How often each neuron of a layer should fire: [ffn], shares of tokens.

        depth: from 0, the first layer, to 1, the last
        noise: [ffn], standard normal
        """
        mean = float(np.interp(depth, (0.0, 0.5, 1.0), self.active))
        tail = torch.exp(self.tail * noise - self.tail**2 / 2)
        return (mean * tail).clamp(RARELY, OFTEN)

    def predicted(self, rates: Tensor) -> Tensor:
        """How often each neuron should be predicted: [ffn], shares of tokens."""
        return (self.predicted_over_active * rates).clamp(max=MOST_PREDICTED)


def _of(first: float, middle: float, last: float, tail: float, square: float) -> Figures:
    """Figures whose predictors are as often wrong as the paper's."""
    mean = (first + 2 * middle + last) / 4
    return Figures((first, middle, last), ((1 - MISSED) * mean + NAMED * (1 - mean)) / mean, tail, square)


OPT = Figures((0.0156, 0.0266, 0.0536), 3.0)
FIGURES = {
    "falcon-7b": _of(0.025, 0.043, 0.089, tail=1.0, square=0.01),
    "llama-2-7b": _of(0.09, 0.13, 0.09, tail=0.7, square=0.01),
    "persimmon-8b": _of(0.07, 0.09, 0.11, tail=0.7, square=0.01),
    "phi-2": _of(0.15, 0.19, 0.23, tail=0.5, square=0.01),
}


def figures_of(name: str) -> Figures:
    """What is planted in a model of this name: all OPTs have the same."""
    return FIGURES.get(name, OPT)
