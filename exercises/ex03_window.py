# Exercises 3.2. With `--impl ref,ex03=mine` this file takes the place of flashlite.window.
# Everything without a TODO is provided, and runs as it stands.
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

LONGEST_WINDOW = 8  # s_agg is reported up to here
NONE = np.zeros(0, np.int64)


def union_sizes(mask: Tensor, length: int) -> tuple[float, ...]:
    """s_agg(k) for k = 1 to LONGEST_WINDOW: the mean number of neurons that k tokens in a row use together.

    mask: [tokens, ffn] bool, of texts of `length` tokens each; a window never spans two texts. (Paper: figure 4)
    """
    texts = mask.view(-1, length, mask.shape[1])
    union, sizes = texts, []
    for k in range(1, LONGEST_WINDOW + 1):
        sizes.append(union.sum(-1).float().mean().item())
        union = union[:, 1:] | texts[:, : length - k]
    return tuple(sizes)


def largest_window(sizes: Sequence[float], rows: int) -> int:
    """The most tokens whose neurons fit in a layer's rows of DRAM: the largest k with s_agg(k) <= rows, 0 if none.

    sizes: s_agg(k) for k = 1, 2, ... as `union_sizes` gives it, never falling; rows: neurons that DRAM has room for.
    """
    return int(np.searchsorted(sizes, rows, side="right"))


@dataclass(frozen=True)
class Step:
    """What one token changes: neurons to load, to drop, and those that found no room. Each: [n] int64."""

    load: np.ndarray
    drop: np.ndarray
    overflow: np.ndarray


class Window:
    """The neurons of the last `tokens` tokens of one layer, never more than `capacity` of them.

    neurons: how many the layer has; tokens: k, where 0 keeps nothing from one token to the next.
    """

    def __init__(self, neurons: int, tokens: int, capacity: int) -> None:
        self.tokens, self.capacity = tokens, capacity
        self._uses = np.zeros(neurons, np.int32)  # how many tokens of the window use each neuron
        self._history: deque[np.ndarray] = deque()
        self.size = 0

    @property
    def resident(self) -> np.ndarray:
        """The neurons in the window, sorted: [size] int64."""
        return np.flatnonzero(self._uses)

    def step(self, active: np.ndarray) -> Step:
        """Move the window on by a token that uses the neurons `active` ([n] int64, sorted, no duplicates).

        Where the window would pass its capacity, its oldest tokens leave early. If the token alone is too large, the
        window keeps as much of it as fits, first what is there already, and the rest is `overflow`.
        """
        # TODO 3.2  load only the difference (6 points, 20 minutes, paper section 3.1)
        # Move the window on by one token and say what that changes. `active` are the neurons that the token needs. Load
        # those of them that no token in the window uses; drop those that only tokens use that now leave the window.
        # Keep self._uses (how many tokens of the window use each neuron), self._history (the neurons of each token in
        # the window, oldest first) and self.size (how many neurons the window holds) right.
        # The window keeps the last self.tokens tokens, this one included, but at least this one. With self.tokens == 0
        # nothing stays: empty the window first and report what was in it as dropped. While the window holds more than
        # self.capacity neurons, its oldest token leaves early.
        # Example: with k = 2 and ample capacity, tokens that use [1 2], [2 3], [3 4] in turn:
        #   step([1 2]) -> load [1 2], drop []
        #   step([2 3]) -> load [3],   drop []
        #   step([3 4]) -> load [4],   drop [1]        resident: [2 3 4]
        # Provided: self._fit(active) gives the part of `active` that fits the capacity and the rest, which is the
        # step's overflow; self._forget_oldest() takes the oldest token out and returns the neurons that no other token
        # uses; self.clear() empties the window and returns what was in it.
        raise NotImplementedError("exercise 3.2: delete this line and write step, see the TODO above")

    def clear(self) -> np.ndarray:
        """Empty the window. Returns the neurons that were in it."""
        gone = self.resident
        self._uses[:] = 0
        self._history.clear()
        self.size = 0
        return gone

    def _fit(self, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if len(active) <= self.capacity:
            return active, NONE
        here = self._uses[active] > 0
        by_preference = np.concatenate([active[here], active[~here]])
        return np.sort(by_preference[: self.capacity]), np.sort(by_preference[self.capacity :])

    def _forget_oldest(self) -> np.ndarray:
        oldest = self._history.popleft()
        self._uses[oldest] -= 1
        gone = oldest[self._uses[oldest] == 0]
        self.size -= len(gone)
        return gone
