"""The rules by which neurons come to DRAM and leave it where a policy decides, in the engine and in the contest alike.

For each token a policy is told which neurons are needed. Those that aren't in DRAM are loaded, whatever it answers. It
answers what to drop, and which neurons to load on top, and it never holds more than its capacity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flashlite.errors import FlashliteError

NONE = np.zeros(0, np.int64)
MEAN_SCORE = 32  # what the mean size of a token's scores is rounded to
LARGEST_SCORE = 127


class Foul(FlashliteError):
    """A policy broke a rule; the text says which, and with which neuron."""


@dataclass(frozen=True)
class Token:
    """What a policy is told of one token.

    needed: [n] int64, sorted, the neurons that the predictor names
    scores: gives [neurons] int8, how sure the predictor is of each neuron, positive for those that it names; see
        `rounded`
    """

    needed: np.ndarray
    scores: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Change:
    """What a policy answers.

    drop: [n] whole numbers, neurons in DRAM that leave it before anything is loaded
    load: [n] whole numbers, neurons to load though the token doesn't need them
    """

    drop: np.ndarray | Sequence[int] = ()
    load: np.ndarray | Sequence[int] = ()


class PolicyLike(Protocol):
    """Decides for one layer of one text which neurons stay in DRAM."""

    def step(self, token: Token) -> Change:
        """What to drop and to load at this token."""


PolicyKind = Callable[[int, int, int], PolicyLike]  # made of a layer's number, its neurons and its capacity


def rounded(scores: np.ndarray) -> np.ndarray:
    """A token's scores as a policy sees them: [neurons] int8, in units in which their mean size is MEAN_SCORE.

    scores: [neurons] float. A score above 0 stays above 0, any other becomes 0 or less, and none passes LARGEST_SCORE.
    """
    scores = scores.astype(np.float64)
    scaled = np.rint(scores * (MEAN_SCORE / max(float(np.abs(scores).mean()), 1e-30)))
    named = np.where(scores > 0, np.maximum(scaled, 1), np.minimum(scaled, 0))
    return np.clip(named, -LARGEST_SCORE, LARGEST_SCORE).astype(np.int8)


def indices(given: object, name: str, neurons: int) -> np.ndarray:
    """What a policy or a layout gave, as neurons: [n] int64. Raises Foul if it isn't a list of different neurons."""
    try:
        array = np.asarray(given)
    except ValueError:
        raise Foul(f"{name} isn't a list of neurons") from None
    if array.size == 0 and array.ndim <= 1:
        return NONE
    if array.ndim != 1 or array.dtype.kind not in "iu":
        kind = f"{array.dtype} of shape {list(array.shape)}"
        raise Foul(f"{name} is {kind}: give neurons as [n] whole numbers, as np.flatnonzero does")
    if array.min() < 0 or array.max() >= neurons:
        raise Foul(f"{name} holds neuron {array.min() if array.min() < 0 else array.max()} of a layer of {neurons}")
    array, counts = np.unique(array.astype(np.int64), return_counts=True)
    if counts.max() > 1:
        raise Foul(f"{name} holds neuron {array[counts.argmax()]} twice")
    return array


def check_order(given: object, layer: int, neurons: int) -> np.ndarray:
    """An entry's order of a layer: [neurons] int64. Raises Foul if it doesn't hold each neuron once."""
    found = indices(given, f"the order of layer {layer}", neurons)
    if len(found) != neurons:
        raise Foul(f"the order of layer {layer} holds {len(found)} neurons of {neurons}: each must be there once")
    return np.asarray(given).astype(np.int64)


class Held:
    """One layer's neurons in DRAM by the rules, empty in the beginning.

    neurons: how many the layer has
    capacity: how many DRAM has room for
    """

    def __init__(self, neurons: int, capacity: int) -> None:
        self.neurons, self.capacity, self.size = neurons, capacity, 0
        self._here = np.zeros(neurons, bool)

    @property
    def held(self) -> np.ndarray:
        """The neurons in DRAM, sorted: [size] int64."""
        return np.flatnonzero(self._here)

    def fit(self, needed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The neurons of a token that fit the capacity, first those held already, and the rest, which pass through DRAM
        and count as loaded, whatever the policy. needed: [n] int64, sorted. Each: [n] int64, sorted."""
        if len(needed) <= self.capacity:
            return needed, NONE
        here = self._here[needed]
        by_preference = np.concatenate([needed[here], needed[~here]])
        return np.sort(by_preference[: self.capacity]), np.sort(by_preference[self.capacity :])

    def move(self, needed: np.ndarray, change: object) -> tuple[np.ndarray, np.ndarray]:
        """Do what a policy answered. Returns what is loaded, needed or not, and what is dropped: [n] int64 each.

        needed: [n] int64, sorted, at most `capacity` of them

        Raises Foul, and changes nothing, if the answer breaks a rule.
        """
        if not isinstance(change, Change):
            raise Foul(f"step returns {type(change).__name__}: return a Change, such as Change(drop=...)")
        drop = indices(change.drop, "drop", self.neurons)
        extra = indices(change.load, "load", self.neurons)
        self._check(needed, drop, extra)
        load = np.union1d(needed[~self._here[needed]], extra)
        if (size := self.size - len(drop) + len(load)) > self.capacity:
            raise Foul(
                f"it holds {size} neurons where there is room for {self.capacity}: drop {size - self.capacity} more"
            )
        self._here[drop], self._here[load] = False, True
        self.size = size
        return load, drop

    def _check(self, needed: np.ndarray, drop: np.ndarray, extra: np.ndarray) -> None:
        wanted = np.zeros(self.neurons, bool)
        wanted[needed] = True
        for neuron in drop[~self._here[drop]][:1]:
            raise Foul(f"it drops neuron {neuron}, which isn't in DRAM")
        for neuron in drop[wanted[drop]][:1]:
            raise Foul(f"it drops neuron {neuron}, which this token needs")
        for neuron in extra[self._here[extra] | wanted[extra]][:1]:
            raise Foul(f"it loads neuron {neuron}, which is {'needed' if wanted[neuron] else 'held'} anyway")

    def clear(self) -> np.ndarray:
        """Drop all. Returns the neurons that were held: [n] int64."""
        gone = self.held
        self._here[:], self.size = False, 0
        return gone
