"""What an entry is compared with: the window, LRU, a decayed frequency, and Belady's policy, which knows the future."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from flashlite.contest.traces import Trace
from flashlite.engine.policies.rules import Change, PolicyKind, Token
from flashlite.engine.window import Window

DECAY = 0.8  # by which a use counts less with each token


class Bounded:
    """The engine's own window, as long as the capacity allows: when it is full, the oldest token leaves."""

    def __init__(self, layer: int, neurons: int, capacity: int) -> None:
        self._window = Window(neurons, neurons * capacity, capacity)

    def step(self, token: Token) -> Change:
        """See PolicyLike."""
        return Change(self._window.step(token.needed).drop)


class Ranked(ABC):
    """Keeps what it has until there is no room; then the neurons of the lowest worth leave."""

    def __init__(self, layer: int, neurons: int, capacity: int) -> None:
        self.neurons, self.capacity = neurons, capacity
        self._held = np.zeros(neurons, bool)

    @abstractmethod
    def worth(self, token: Token) -> np.ndarray:
        """What each neuron is worth after a token: [neurons] numbers."""

    def step(self, token: Token) -> Change:
        """See PolicyLike."""
        worth = self.worth(token)
        before = self._held.copy()
        self._held[token.needed] = True
        excess = np.count_nonzero(self._held) - self.capacity
        before[token.needed] = False  # what may leave
        others = np.flatnonzero(before)[::-1]  # of equals the last leaves, as in bench/replay.py
        drop = others[np.argsort(worth[others], kind="stable")[: max(0, excess)]]
        self._held[drop] = False
        return Change(drop)


class LRU(Ranked):
    """The neuron used least recently leaves."""

    def __init__(self, layer: int, neurons: int, capacity: int) -> None:
        super().__init__(layer, neurons, capacity)
        self._used, self._now = np.zeros(neurons, np.int64), 0

    def worth(self, token: Token) -> np.ndarray:
        """The last token that used each neuron."""
        self._now += 1
        self._used[token.needed] = self._now
        return self._used


class Frequency(Ranked):
    """The neuron used least often leaves, where a use counts less with every token that passes."""

    def __init__(self, layer: int, neurons: int, capacity: int) -> None:
        super().__init__(layer, neurons, capacity)
        self._uses = np.zeros(neurons)

    def worth(self, token: Token) -> np.ndarray:
        """How often each neuron was used, decayed."""
        self._uses *= DECAY
        self._uses[token.needed] += 1
        return self._uses


class Belady(Ranked):
    """The neuron needed latest from now leaves (Belady 1966). No policy reads less, and none can know what it knows."""

    def __init__(self, layer: int, neurons: int, capacity: int, trace: Trace) -> None:
        super().__init__(layer, neurons, capacity)
        needed = trace.scores[layer] > 0
        self._next = np.full((trace.tokens + 1, neurons), trace.tokens)  # after each token, when it is needed next
        for t in range(trace.tokens - 1, -1, -1):
            self._next[t] = np.where(needed[t], t, self._next[t + 1])
        self._now = 0

    def worth(self, token: Token) -> np.ndarray:
        """The sooner a neuron is needed, the more it is worth."""
        self._now += 1
        return -self._next[self._now]


def baselines(trace: Trace) -> Mapping[str, PolicyKind]:
    """The policies, by the names that tables and figures give them, in order."""
    best = lambda layer, neurons, capacity: Belady(layer, neurons, capacity, trace)  # noqa: E731
    return {"window": Bounded, "LRU": LRU, "decayed frequency": Frequency, "Belady": best}
