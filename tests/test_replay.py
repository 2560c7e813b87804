"""Replayed policies against plain sets, and Belady's against every choice there is."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashlite.bench.replay import replay_belady, replay_lru, replay_window
from flashlite.errors import FlashliteError

NEURONS = 6
TOKENS = st.sets(st.integers(0, NEURONS - 1), max_size=3)
traces = st.lists(TOKENS, min_size=1, max_size=12)


def arrays(trace: list[set[int]]) -> list[np.ndarray]:
    return [np.array(sorted(active), np.int64) for active in trace]


@given(traces, st.integers(1, 4))
def test_window_holds_the_union_of_its_tokens(trace: list[set[int]], k: int) -> None:
    replay = replay_window(arrays(trace), NEURONS, k)
    for t, active in enumerate(trace):
        before = set().union(*trace[max(0, t - k) : t])
        assert replay.loads[t] == len(active - before)
        assert replay.held[t] == len(set().union(*trace[max(0, t - k + 1) : t + 1]))


@given(traces, st.integers(3, NEURONS))
def test_lru_drops_what_was_used_longest_ago(trace: list[set[int]], capacity: int) -> None:
    replay = replay_lru(arrays(trace), NEURONS, capacity)
    used: dict[int, int] = {}
    for t, active in enumerate(trace):
        assert replay.loads[t] == len(active - used.keys())
        used |= dict.fromkeys(active, t)
        for neuron in sorted(used.keys() - active, key=lambda n: (used[n], -n))[: max(0, len(used) - capacity)]:
            del used[neuron]
        assert replay.held[t] == len(used) <= capacity


def fewest_loads(trace: list[set[int]], capacity: int) -> int:
    """By trying everything: after each token any set may be held that had room beside what the token needs."""
    best = {frozenset[int](): 0}
    for active in trace:
        following: dict[frozenset[int], int] = {}
        for held, loads in best.items():
            spare = sorted(held - active)
            for count in range(min(len(spare), capacity - len(active)) + 1):
                for kept in combinations(spare, count):
                    after = frozenset(active) | frozenset(kept)
                    cost = loads + len(active - held)
                    following[after] = min(cost, following.get(after, cost))
        best = following
    return min(best.values())


@given(st.lists(TOKENS, min_size=1, max_size=7), st.integers(3, 4))
def test_belady_reads_the_least_that_is_possible(trace: list[set[int]], capacity: int) -> None:
    replay = replay_belady(arrays(trace), NEURONS, capacity)
    assert replay.loads.sum() == fewest_loads(trace, capacity)
    assert replay.held.max(initial=0) <= capacity


@pytest.mark.parametrize("policy", [replay_lru, replay_belady])
def test_a_token_that_needs_more_than_there_is_room_for_is_refused(policy: object) -> None:
    with pytest.raises(FlashliteError, match="needs 3 neurons, more than there is room for: 2"):
        policy([np.array([0, 1, 2])], NEURONS, 2)  # type: ignore[operator]
