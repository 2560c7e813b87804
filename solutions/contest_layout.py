"""The second contest: a chain in which each neuron comes after those that are likely to be read with it.

Why it is as it is. A gap of up to three neurons is read through, so a neuron saves most beside one that is read
together with it (3), less with one between them (2), little with two between them (1). The chain therefore looks back
at three neurons, weighs them so, and takes of the neurons that are left the one that goes with them best.

How often two neurons are read together must be guessed from a few hundred tokens, in which most pairs were never needed
together, or by chance once. The scores say more than the names: a neuron that just missed being named counts nearly as
much as one that was just named. So what is multiplied is a soft need between 0 and 1. It is divided by the size of each
of the two, as a correlation is; otherwise frequent neurons would follow on each other only because they are frequent,
and their true companions would be lost at the end of the chain.

How far it goes: the order by frequency gains little. What remains to one stretch is not to be had, because every token
wants other neurons.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SOFTNESS = 4  # units of score within which a neuron's need is in doubt
BACK = (3, 2, 1)  # what a neuron saves beside the last of the chain, beside the one before, and the one before that


def order(layer: int, neurons: int, past: Sequence[np.ndarray]) -> np.ndarray:
    """See exercises/contest_layout.py."""
    if not past:
        return np.arange(neurons)
    need = 1 / (1 + np.exp(-np.concatenate(past).astype(np.float32) / SOFTNESS))
    size = np.sqrt((need**2).sum(0))
    together = need.T @ need / (size * size[:, None])
    left, chain = np.ones(neurons, bool), [int(size.argmax())]
    while len(chain) < neurons:
        left[chain[-1]] = False
        saved = sum(weight * together[neuron] for weight, neuron in zip(BACK, chain[::-1], strict=False))
        chain.append(int(np.where(left, saved, -1).argmax()))
    return np.array(chain)
