"""Exercises 3.1 to 3.4: the sliding window."""

from __future__ import annotations

import numpy as np
import pytest

from flashlite.course.checks import expect, require, rng
from flashlite.window import Window

NEURONS, TOKENS = 200, 30


def active_sets(count: int = TOKENS) -> list[np.ndarray]:
    """Which neurons each token uses: like a real model's, most are used by the token before as well."""
    random, sets = rng(), []
    current = random.random(NEURONS) < 0.1
    for _ in range(count):
        renewed = random.random(NEURONS) < 0.3
        current = np.where(renewed, random.random(NEURONS) < 0.1, current)
        sets.append(np.flatnonzero(current))
    return sets


@pytest.mark.points("3.2", 4)
@pytest.mark.parametrize("k", [1, 4])
def test_step_loads_and_drops_only_the_difference(k: int) -> None:
    window, before = Window(NEURONS, k, NEURONS), np.zeros(0, np.int64)
    sets, loaded, needed = active_sets(), 0, 0
    for i, active in enumerate(sets):
        step = window.step(active)
        after = np.unique(np.concatenate(sets[max(0, i - k + 1) : i + 1]))
        loaded, needed = loaded + len(step.load), needed + len(np.setdiff1d(active, before))
        mistakes = {
            "Neurons already in DRAM were read again.": active,
            "The window is one token too short.": np.setdiff1d(active, union(sets, i - k + 1, i)),
            "The window is one token too long.": np.setdiff1d(active, union(sets, i - k - 1, i)),
        }
        expect(np.sort(step.load), np.setdiff1d(active, before), f"token {i}, k = {k}: neurons to load", mistakes)
        expect(np.sort(step.drop), np.setdiff1d(before, after), f"token {i}, k = {k}: neurons to drop")
        expect(window.resident, after, f"token {i}, k = {k}: neurons in the window")
        before = after
    require(loaded == needed, f"read {loaded} neurons", f"{needed}")


def union(sets: list[np.ndarray], begin: int, end: int) -> np.ndarray:
    """All neurons that tokens begin to end - 1 use."""
    return np.unique(np.concatenate([*sets[max(0, begin) : max(0, end)], np.zeros(0, np.int64)]))
