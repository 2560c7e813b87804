"""Which neurons to keep, by replaying a trace: the window beside LRU and the best that any policy could do.

A trace is what one layer needs, token by token: a list of [n] int64, sorted. All three count neurons loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from flashlite.engine.window import Window
from flashlite.errors import FlashliteError

NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Replay:
    """What a policy did: loads [tokens], neurons read for each token; held [tokens], neurons in DRAM with each."""

    loads: np.ndarray
    held: np.ndarray


def replay_window(trace: Sequence[np.ndarray], neurons: int, tokens: int) -> Replay:
    """The sliding window of `tokens` tokens over a layer of `neurons` neurons, with all the DRAM it wants."""
    window = Window(neurons, tokens, neurons)
    steps = [(len(window.step(active).load), window.size) for active in trace]
    return Replay(*np.array(steps).T)


def replay_lru(trace: Sequence[np.ndarray], neurons: int, capacity: int) -> Replay:
    """Room for `capacity` neurons; the one used least recently leaves. Raises FlashliteError if a token needs more."""
    return _replay(trace, neurons, capacity, [np.full(len(active), -t) for t, active in enumerate(trace)])


def replay_belady(trace: Sequence[np.ndarray], neurons: int, capacity: int) -> Replay:
    """Room for `capacity` neurons; the one needed latest from now leaves, as only who knows the future can choose.

    No policy with this room loads less (Belady 1966). Raises FlashliteError if a token needs more.
    """
    following = np.full(neurons, NEVER)
    next_uses: list[np.ndarray] = []
    for t in range(len(trace) - 1, -1, -1):
        next_uses.append(following[trace[t]])
        following[trace[t]] = t
    return _replay(trace, neurons, capacity, next_uses[::-1])


def replay_friends(trace: Sequence[np.ndarray], friend: np.ndarray | Tensor) -> np.ndarray:
    """Reads by token where a bundle holds a neuron and its closest friend: [tokens] int64.

    A neuron that a token needs, and that no bundle has brought for this token yet, is read, and its friend comes along.
    friend: [neurons], see `closest_friends`.
    """
    friends, reads = friend.tolist(), []
    for active in trace:
        here: set[int] = set()
        reads.append(0)
        for neuron in active.tolist():
            if neuron not in here:
                here |= {neuron, friends[neuron]}
                reads[-1] += 1
    return np.array(reads)


def _replay(trace: Sequence[np.ndarray], neurons: int, capacity: int, ranks: Sequence[np.ndarray]) -> Replay:
    """Evict those of the highest rank, which each token gives to the neurons it uses. ranks[t]: like trace[t]."""
    held, rank = np.zeros(neurons, bool), np.zeros(neurons, np.int64)
    steps = []
    for active, ranked in zip(trace, ranks, strict=True):
        if len(active) > capacity:
            raise FlashliteError(f"a token needs {len(active)} neurons, more than there is room for: {capacity}")
        loads = np.count_nonzero(~held[active])
        held[active], rank[active] = True, ranked
        excess = np.count_nonzero(held) - capacity
        if excess > 0:
            others = np.setdiff1d(np.flatnonzero(held), active, True)
            held[others[np.argsort(rank[others], kind="stable")[-excess:]]] = False
        steps.append((loads, np.count_nonzero(held)))
    return Replay(*np.array(steps).T)
