"""The second contest: an order of the neurons on flash in which those that are read together lie side by side.

`order` is asked once for each layer, and given what the layer's predictor said of other texts. It answers where each
neuron shall lie. Then the referee takes a text that you haven't seen and reads, token by token, what the window loads:

1. Neurons that lie side by side are one read.
2. A read may go through a gap, neurons that nobody asked for, where that is cheaper than to begin a new read.
3. A read costs as much as 3 neurons that are read in order, and each neuron that is read, wanted or in a gap, costs 1.
   (So gaps of up to 3 neurons are read through.)

Your score is 0 for the order in which the model is stored. It would be 100 if each layer's loads at each token lay in
one stretch, which no order can give, because every token wants other neurons.

    flashlite contest layout                                 # your score on the course's traces
    flashlite contest --record my-traces --seed 7            # more traces to try it on
    flashlite contest layout --traces my-traces

On the course's traces each is graded with an order that was learned from the others; on those of --traces with an order
that was learned from all of the course's. The file runs in a process of its own: 2 GB of memory, 120 seconds for all
layers together, NumPy and the standard library at hand.

What runs here now is the order in which the model is stored. It scores 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def order(layer: int, neurons: int, past: Sequence[np.ndarray]) -> np.ndarray:
    """Where the neurons of one layer lie: [neurons] whole numbers, the neuron at each place, each neuron once.

    layer: its number, from 0
    neurons: how many it has
    past: what its predictor said of other texts: [tokens, neurons] int8 for each text, above 0 where a token needs a
        neuron, and the higher the surer; 32 is the mean size of a token's scores. Some neurons that a token needs are
        in DRAM already: what is read for it is what the tokens shortly before it didn't need.

    Example: with 4 neurons, np.array([2, 0, 1, 3]) puts neuron 2 first, then 0, 1 and 3. A token that loads 0 and 2
    then takes one read, and so does one that loads 2 and 1, through the gap at neuron 0.
    """
    return np.arange(neurons)
