# Solutions of exercises 3.1, 3.2, 3.3, 3.4: flashlite.engine.window as the engine runs it.
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
    # 3.1  A union of k + 1 tokens is the union of the k after the first with the first: each step is one | over the
    # whole text, where starting anew for each k would cost k of them. Splitting into texts first keeps the windows
    # apart. s_agg(k) says how much DRAM k tokens need, and s_agg(k + 1) - s_agg(k) what a new token reads.
    # Usual mistakes: windows that begin in one text and end in the next; adding up the tokens' counts, where shared
    # neurons count twice; taking only windows that don't overlap; counting neurons that all k tokens use.
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
    # 3.4  Each token more in the window saves reads, so the longest one that fits is the best. sizes never falls, so
    # the answer is the place where rows would be inserted after its equals: a binary search, and no special case for
    # none or all. Sizes are means: a text that turns to something new needs more for a while, and then the oldest
    # tokens leave early.
    # Usual mistakes: returning the index, which is k - 1; < instead of <=; rounding the sizes down; an error or
    # len(sizes) + 1 where all fit; the first of equal sizes instead of the last.
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
        # 3.2  A neuron stays as long as one token of the window uses it, so a count of uses is enough: 0 → 1 means
        # load, 1 → 0 means drop. The new token is counted before the oldest one leaves; otherwise a neuron that both
        # use would be dropped and read again.
        # Usual mistakes: forgetting the oldest token first (neurons that both use are read again); loading all of
        # `active` (neurons already in DRAM are read again); a window of k + 1 or k - 1 tokens; letting one token leave
        # where two must; np.concatenate of an empty list, which raises.
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
        # 3.3  Counting uses makes forgetting as cheap as the token is small: no union of the other k - 1 tokens must be
        # built to know what may go. Only where a count falls to 0 is a neuron dropped, and only these leave the size.
        # Usual mistakes: returning all that the token used, also what younger tokens still use; taking the newest
        # token; looking for zeros before counting down; reducing size by the token's neurons instead of those that
        # leave.
        oldest = self._history.popleft()
        self._uses[oldest] -= 1
        gone = oldest[self._uses[oldest] == 0]
        self.size -= len(gone)
        return gone
