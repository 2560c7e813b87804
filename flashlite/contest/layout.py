"""The second contest: neurons lie on flash in an order of your own, so that those read together lie side by side.

What is read is what the window loads, token by token. Neighbours are one read, and a read may also go through a gap: it
then reads neurons that nobody asked for. A read costs as much as READ neurons, and every neuron that is read costs 1.
The referee reads through a gap wherever that is cheaper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flashlite.contest.baselines import Bounded
from flashlite.contest.traces import Trace
from flashlite.engine.policies.rules import Held

READ = 3  # neurons that could be read in order in the time that one more read takes
Orders = Sequence[np.ndarray]  # for each layer, [neurons] int64: the neuron at each place on flash
OrderKind = Callable[[int, int, Sequence[np.ndarray]], np.ndarray]  # of a layer, its neurons, and traces, see `past`


@dataclass(frozen=True)
class Cost:
    """What the loads of one or several traces cost: reads, neurons that were wanted, neurons of gaps read through."""

    reads: int
    wanted: int
    gaps: int

    @property
    def total(self) -> int:
        """In neurons."""
        return READ * self.reads + self.wanted + self.gaps

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.reads + other.reads, self.wanted + other.wanted, self.gaps + other.gaps)


NOTHING = Cost(0, 0, 0)


def loads_of(trace: Trace) -> list[list[np.ndarray]]:
    """What the window loads, by layer and token: [n] int64, sorted."""
    loads: list[list[np.ndarray]] = []
    for layer, capacity in enumerate(trace.capacity):
        rules, window = Held(trace.neurons, capacity), Bounded(layer, trace.neurons, capacity)
        loads.append([])
        for t in range(trace.tokens):
            needed, overflow = rules.fit(trace.needed(layer, t))
            loaded, _ = rules.move(needed, window.step(trace.token(layer, t, needed)))
            loads[-1].append(np.union1d(loaded, overflow))
    return loads


def cost_of(wanted: np.ndarray, place: np.ndarray) -> Cost:
    """What one layer's loads at one token cost. wanted: [n] int64; place: [neurons] int64, where each neuron lies."""
    if not len(wanted):
        return NOTHING
    gaps = np.diff(np.sort(place[wanted])) - 1
    through = gaps[gaps <= READ]
    return Cost(1 + int(np.count_nonzero(gaps > READ)), len(wanted), int(through.sum()))


def cost(loads: Sequence[Sequence[np.ndarray]], orders: Orders) -> Cost:
    """What loads by layer and token cost, where the neurons of each layer lie in these orders."""
    total = NOTHING
    for tokens, order in zip(loads, orders, strict=True):
        place = np.argsort(order)
        total = sum((cost_of(wanted, place) for wanted in tokens), total)
    return total


def bound(loads: Sequence[Sequence[np.ndarray]]) -> Cost:
    """What they would cost if each layer's loads at each token lay in one stretch, which no order can give."""
    tokens = [wanted for layer in loads for wanted in layer if len(wanted)]
    return Cost(len(tokens), sum(map(len, tokens)), 0)


def stored(layer: int, neurons: int, past: Sequence[np.ndarray]) -> np.ndarray:
    """The order in which the model is stored."""
    return np.arange(neurons)


def by_frequency(layer: int, neurons: int, past: Sequence[np.ndarray]) -> np.ndarray:
    """The neuron that is needed most often first."""
    return np.argsort(-needed_of(neurons, past).sum(0), kind="stable")


def chain(layer: int, neurons: int, past: Sequence[np.ndarray]) -> np.ndarray:
    """A greedy chain: after each neuron comes the one, of those left, that is needed together with it most often."""
    needed = needed_of(neurons, past).astype(np.float32)
    together = needed.T @ needed
    often = together.diagonal() / (1 + len(needed))  # below 1: it only decides between equals
    left, order = np.ones(neurons, bool), [int(often.argmax())]
    while len(order) < neurons:
        left[order[-1]] = False
        order.append(int(np.where(left, together[order[-1]] + often, -1).argmax()))
    return np.array(order)


def needed_of(neurons: int, past: Sequence[np.ndarray]) -> np.ndarray:
    """Which neurons the tokens of all these texts need: [tokens, neurons] bool."""
    return np.concatenate([np.zeros((0, neurons), bool), *(scores > 0 for scores in past)])


BASELINES: Mapping[str, OrderKind] = {"stored order": stored, "by frequency": by_frequency, "chain": chain}
