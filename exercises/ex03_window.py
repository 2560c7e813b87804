# Exercises 3.1, 3.2, 3.3, 3.4. With `--impl ref,ex03=mine` this file takes the place of flashlite.engine.window.
# Everything without a TODO is provided, and runs as it stands; where a body is left out, the engine's own runs.
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
    # TODO 3.1  s_agg: neurons that k tokens use together (3 points, 15 minutes, paper section 3.1, figure 4)
    # Measure how many neurons a window of k tokens needs. For k = 1, 2, ... LONGEST_UNION: take every k tokens in a row
    # of a text, count the neurons that at least one of the k uses, and return the mean of these counts over all such
    # places in all texts. Return a tuple of LONGEST_UNION floats, s_agg(1) first, in neurons (not as a share).
    # mask: [tokens, ffn] bool, True where the token uses the neuron; texts of `length` tokens each, one after the
    # other, so that tokens is a multiple of length. A text with `length` tokens has length - k + 1 places for k tokens;
    # k tokens never lie partly in one text and partly in the next. length is at least LONGEST_UNION. Leave mask as it
    # is.
    # Example: one text of three tokens that use [0 1], [1 2], [1]:
    #   s_agg(1) = (2 + 2 + 1) / 3 = 1.667
    #   s_agg(2) = (3 + 2) / 2 = 2.5     [0 1 2] and [1 2]
    #   s_agg(3) = 3                     [0 1 2]
    # Provided: only torch: | is the union of two bool tensors, .view splits a dimension.
    # In the engine: flashlite train-predictor my-store --text flashlite/*/*.py --tokens 2048 --steps 20 --out
    # predictor.safetensors --impl ref,3.1=mine
    raise NotImplementedError("exercise 3.1: delete this line and write union_sizes, see the TODO above")


def largest_window(sizes: Sequence[float], rows: int) -> int:
    """The most tokens whose neurons fit in DRAM: the largest k with s_agg(k) <= rows, 0 if not even one token's do.

    sizes: s_agg(k) for k = 1, 2, ... as `union_sizes` gives it, of one layer or of several together; it never falls
    rows: how many neurons there is room for
    """
    # TODO 3.4  the longest window that fits a budget (2 points, 5 minutes, paper section 3.1)
    # Say how many tokens a window may have in the DRAM that there is. sizes[0] is s_agg(1), sizes[1] is s_agg(2) and so
    # on: the mean number of neurons that k tokens use together, in one layer or in all of them. Return, as an int, the
    # largest k with s_agg(k) <= rows: exactly full is still fitting. Return 0 if even one token is too large, and
    # len(sizes) if all fit: nothing is known about longer windows.
    # sizes is a sequence of floats that never falls, but neighbours may be equal. rows is the number of neurons that
    # there is room for, 0 or more. Leave sizes as it is.
    # With `--window auto` the engine asks this function, once for all layers together, because one window holds for all
    # of them.
    # Example: sizes = (10, 16.5, 20, 23)
    #   rows = 19 -> 2    rows = 20 -> 3    rows = 9 -> 0    rows = 99 -> 4
    # Provided: NumPy is imported as np.
    # In the engine: flashlite bench --stage 3 --window auto --impl ref,3.4=mine
    raise NotImplementedError("exercise 3.4: delete this line and write largest_window, see the TODO above")


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
        # TODO 3.2  load only the difference (6 points, 20 minutes, paper section 3.1)
        # Move the window on by one token and say what that changes. `active` are the neurons that the token needs. Load
        # those of them that no token in the window uses; drop those that only tokens use that now leave the window. A
        # neuron that leaving tokens and the new one use is neither loaded nor dropped (but for self.tokens == 0, see
        # below).
        # Keep self._uses (how many tokens of the window use each neuron), self._history (the neurons of each token in
        # the window, oldest first) and self.size (how many neurons the window holds) right.
        # The window keeps the last self.tokens tokens, this one included, but at least this one. With self.tokens == 0
        # nothing stays from one token to the next: empty the window first, report what was in it as dropped, and load
        # all that the token needs. While the window holds more than self.capacity neurons, its oldest token leaves
        # early, and one more if that isn't enough.
        # If the token alone needs more than self.capacity neurons, only the part that fits counts as used by it; the
        # rest is neither loaded nor kept but returned as overflow.
        # Return a Step: three int64 arrays, also where one is empty (NONE is such an array); the order inside load and
        # drop doesn't matter. Leave active as it is; it may be stored.
        # Example: with k = 2 and ample capacity, tokens that use [1 2], [2 3], [3 4] in turn:
        #   step([1 2]) -> load [1 2], drop []
        #   step([2 3]) -> load [3],   drop []
        #   step([3 4]) -> load [4],   drop [1]        held: [2 3 4]
        #   step([1 4]) -> load [1],   drop [2]        held: [1 3 4]
        # the same four with capacity 2, from the third on:
        #   step([3 4]) -> load [4],   drop [2]        held: [3 4]
        #   step([1 4]) -> load [1],   drop [3]        held: [1 4]
        # Provided: self._fit(active) gives the part of `active` that fits the capacity and the rest, which is the
        # step's overflow; self._forget_oldest() takes the oldest token out, keeps _uses, _history and size right and
        # returns the neurons that no other token uses (exercise 3.3; while 3.2 is graded the engine's is used);
        # self.clear() empties the window and returns what was in it.
        # In the engine: flashlite bench --stage 3 --window auto --impl ref,3.2=mine
        raise NotImplementedError("exercise 3.2: delete this line and write step, see the TODO above")

    def amend(self, active: np.ndarray) -> Step:
        """Replace the neurons of the last token: `step` was given a guess, and now its true neurons are known.

        active: [n] int64, sorted, no duplicates

        The guessed neurons are in DRAM by now. Neurons that were guessed rightly need no loading, and guessed neurons
        that no token uses are dropped. Afterwards the window is as if it had never been given the guess, except for one
        thing: tokens that left to make room for it don't come back.
        """
        # Left out, because it would show how to solve an exercise. The engine's own code runs here.
        raise NotImplementedError("left out here: flashlite runs its own code in place of this")

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
        # TODO 3.3  drop what only the oldest token used (3 points, 10 minutes, paper section 3.1)
        # Take the oldest token out of the window and return the neurons that may leave DRAM with it: those it used and
        # no token left in the window uses, [n] int64.
        # Afterwards all three must be right again: self._history (a deque of int64 arrays, the neurons of each token in
        # the window, oldest first) no longer has the token; self._uses ([neurons] int32) says for each neuron how many
        # of the remaining tokens use it; self.size is the number of neurons with a use.
        # No neuron occurs twice in a token's array, and the array may be empty. The window holds at least one token.
        # The arrays in self._history are the caller's: leave their contents as they are.
        # Example: tokens [1 2], [2 3] in the window: size 3, neuron 2 has 2 uses
        #   _forget_oldest() -> [1]      size 2, neuron 2 has 1 use, held [2 3]
        #   _forget_oldest() -> [2 3]    size 0, held []
        # Provided: self._history is a collections.deque, self._uses a NumPy array: an int64 array as its index selects
        # these neurons.
        # In the engine: flashlite bench --stage 3 --window auto --impl ref,3.3=mine
        raise NotImplementedError("exercise 3.3: delete this line and write _forget_oldest, see the TODO above")
