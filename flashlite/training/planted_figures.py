"""How sparse planted models are, by name, and where these figures come from.

| model | zeros | source |
|---|---|---|
| OPT | 97 % | the paper, section 3.1, OPT-6.7B's layers |
| Falcon-7B | 95 % | the paper; ReLU Strikes Back (Mirzadeh et al. 2023) has 94 % |
| Llama-2-7B | 89 % | ProSparse (Song et al. 2024); plain ReLU's 62 to 67 % would not fit half of the memory |
| Persimmon-8B | 91 % | inferred |
| Phi-2 | 81 % | inferred |

*Inferred*: nobody published how sparse these two are, so the figure follows from the paper's table 3. At 2.25 GB/s, the
rate that its table 2 gives for bundles, a token's I/O time stands for bytes, and these are the neurons that are newly
loaded: 6.6 % of Persimmon-8B's FFNs and 14.1 % of Phi-2's. In OPT-6.7B 2.4 % are newly loaded where 3.3 % fire, and the
same ratio is taken for granted here.

How the zeros are spread over layers was published for OPT alone. Falcon's is taken to be like it, because the paper
gives its last layers larger predictors too; Llama's rises in the middle, where the paper gives it larger predictors;
the other two rise slowly, which is a guess.

How far a token's neurons overlap with those of the tokens before it is planted too. With OPT's `slow` a window of five
tokens loads 2.4 % newly and holds 24 %, as the paper says. Elsewhere the paper's I/O times ask for less overlap: with
0.2, Falcon loads 3.4 % newly, as much as its I/O time stands for, and Llama 8 % with the paper's window of two tokens
(7.3 %). With longer windows, where memory allows them, less is loaded.

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
    resident, new: shares of a layer's neurons that a window of five tokens then holds, and that it loads for a token
    slow: share of the input's variance that changes slowly from token to token
    tail: standard deviation of the logarithm of a neuron's rate; smaller where more fire, because none fires always
    square: mean square of a neuron's value where its input has variance 1, by which down projections are scaled
    """

    active: tuple[float, float, float]
    predicted_over_active: float
    resident: float
    new: float
    slow: float
    tail: float
    square: float

    @property
    def mean(self) -> float:
        """Mean share of the neurons that fire, over all layers."""
        first, middle, last = self.active
        return (first + 2 * middle + last) / 4

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


def _ratio(share: float) -> float:
    """How many times as many neurons a predictor names as fire, if it is as often wrong as the paper's. share: fire."""
    return ((1 - MISSED) * share + NAMED * (1 - share)) / share


OPT = Figures((0.0156, 0.0266, 0.0536), 3.0, resident=0.24, new=0.024, slow=0.6, tail=1.0, square=0.01)
FIGURES = {
    "falcon-7b": Figures((0.025, 0.043, 0.089), _ratio(0.05), 0.33, 0.034, slow=0.2, tail=1.0, square=0.01),
    "llama-2-7b": Figures((0.09, 0.13, 0.09), _ratio(0.11), 0.46, 0.044, slow=0.2, tail=0.7, square=0.03),
    "persimmon-8b": Figures((0.07, 0.09, 0.11), _ratio(0.09), 0.44, 0.044, slow=0.2, tail=0.7, square=0.07),
    "phi-2": Figures((0.15, 0.19, 0.23), _ratio(0.19), 0.62, 0.047, slow=0.2, tail=0.5, square=0.11),
}


def figures_of(name: str) -> Figures:
    """What is planted in a model of this name: all OPTs have the same."""
    return FIGURES.get(name, OPT)
