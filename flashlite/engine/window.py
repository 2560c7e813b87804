"""Which neurons stay in DRAM: those that any of the last k tokens used. (Paper: section 3.1, sliding window)

A neuron that fired for one token tends to fire for the next ones. So a new token loads only the neurons that none of
the last k tokens used, and neurons that leave the window are dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

LONGEST_UNION = 8  # tokens; s_agg is reported up to here
NONE = np.zeros(0, np.int64)


def union_sizes(mask: Tensor, length: int) -> tuple[float, ...]:
    """s_agg(k) for k = 1 to LONGEST_UNION: the mean number of neurons that k tokens in a row use together.

    mask: [tokens, ffn] bool, of texts of `length` tokens each; a window never spans two texts. (Paper: figure 4)
    """
    texts = mask.view(-1, length, mask.shape[1])
    union, sizes = texts, []
    for k in range(1, LONGEST_UNION + 1):
        sizes.append(union.sum(-1).float().mean().item())
        union = union[:, 1:] | texts[:, : length - k]
    return tuple(sizes)


def largest_window(sizes: Sequence[float], rows: int) -> int:
    """The most tokens whose neurons fit in DRAM: the largest k with s_agg(k) <= rows, 0 if not even one token's do.

    sizes: s_agg(k) for k = 1, 2, ... as `union_sizes` gives it, of one layer or of several together; it never falls
    rows: how many neurons there is room for
    """
    return int(np.searchsorted(sizes, rows, side="right"))


@dataclass(frozen=True)
class Step:
    """One token's change of the window: neurons to load, to drop, and those that found no room. Each: [n] int64."""

    load: np.ndarray
    drop: np.ndarray
    overflow: np.ndarray


class Window:
    """The neurons of the last `tokens` tokens of one layer, never more than `capacity` of them.

    neurons: how many the layer has
    tokens: k; with 0, nothing stays from one token to the next
    capacity: how many neurons DRAM has room for
    """

    def __init__(self, neurons: int, tokens: int, capacity: int) -> None:
        self.tokens, self.capacity = tokens, capacity
        self._uses = np.zeros(neurons, np.int32)  # how many tokens of the window use each neuron
        self._history: deque[np.ndarray] = deque()
        self.size = 0

    @property
    def held(self) -> np.ndarray:
        """The neurons in the window, sorted: [size] int64."""
        return np.flatnonzero(self._uses)

    @property
    def newest(self) -> np.ndarray:
        """The neurons of the last token, but for those that found no room: [n] int64, sorted."""
        return self._history[-1] if self._history else NONE

    def lacks(self, neurons: np.ndarray) -> np.ndarray:
        """Those of some neurons that are not in the window, in the same order. neurons: [n] int64."""
        return neurons[self._uses[neurons] == 0]

    def step(self, active: np.ndarray) -> Step:
        """Move the window on by a token that uses the neurons `active` ([n] int64, sorted, no duplicates).

        Where the window would pass its capacity, its oldest tokens leave before their time. If the token alone is too
        large, the window keeps as many of its neurons as fit, first those that it holds already, and the rest are
        `overflow`.
        """
        dropped = [self.clear()] if self.tokens == 0 else []
        kept, overflow = self._fit(active)
        load = kept[self._uses[kept] == 0]
        self._uses[kept] += 1
        self._history.append(kept)
        self.size += len(load)
        while len(self._history) > max(1, self.tokens) or self.size > self.capacity:
            dropped.append(self._forget_oldest())
        return Step(load, np.concatenate(dropped) if dropped else NONE, overflow)

    def amend(self, active: np.ndarray) -> Step:
        """Replace the neurons of the last token: `step` was given a guess, and now its true neurons are known.

        active: [n] int64, sorted, no duplicates

        The guessed neurons are in DRAM by now. Neurons that were guessed rightly need no loading, and guessed neurons
        that no token uses are dropped. Afterwards the window is as if it had never been given the guess, except for one
        thing: tokens that left to make room for it don't come back.
        """
        guess = self._history.pop()
        self._uses[guess] -= 1
        unused = guess[self._uses[guess] == 0]  # in DRAM for the guess alone
        self.size -= len(unused)
        step = self.step(active)
        here = np.zeros(len(self._uses), bool)
        here[unused] = True
        return Step(step.load[~here[step.load]], np.concatenate([step.drop, self.lacks(unused)]), step.overflow)

    def clear(self) -> np.ndarray:
        """Empty the window. Returns the neurons that were in it."""
        gone = self.held
        self._uses[:] = 0
        self._history.clear()
        self.size = 0
        return gone

    def _fit(self, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The neurons of `active` that fit the capacity, first those held already, and the rest. Each: [n], sorted."""
        if len(active) <= self.capacity:
            return active, NONE
        here = self._uses[active] > 0
        by_preference = np.concatenate([active[here], active[~here]])
        return np.sort(by_preference[: self.capacity]), np.sort(by_preference[self.capacity :])

    def _forget_oldest(self) -> np.ndarray:
        """Take the oldest token out. Returns its neurons that no token left in the window uses: [n] int64, sorted."""
        oldest = self._history.popleft()
        self._uses[oldest] -= 1
        gone = oldest[self._uses[oldest] == 0]
        self.size -= len(gone)
        return gone
