"""The window against plain sets: what stays, what is loaded, what is dropped and what finds no room."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flashlite.engine.window import Step, Window

NEURONS = 16
QUICK = settings(deadline=None, max_examples=100)
ACTIVE = st.sets(st.integers(0, NEURONS - 1)) | st.sets(st.integers(0, 4))
SEQUENCES = st.lists(ACTIVE, max_size=20)
TOKENS, CAPACITIES = st.integers(0, 6), st.integers(0, NEURONS)
AFTER_CLEARING = None
WITH_CLEARING = st.lists(ACTIVE | st.just(AFTER_CLEARING), max_size=20)


def move_on(window: Window, active: set[int]) -> Step:
    """One token."""
    return window.step(np.array(sorted(active), np.int64))


def as_set(neurons: np.ndarray) -> set[int]:
    """Neurons of which none may be named twice."""
    found = set(neurons.tolist())
    assert len(found) == len(neurons)
    return found


def used_by_last(tokens: list[set[int]], k: int) -> set[int]:
    """What the last k tokens used, the present one always among them."""
    return set().union(*tokens[-max(1, k) :])


class PlainWindow:
    """The same window made of sets; which part of too large a token finds no room it is told."""

    def __init__(self, tokens: int, capacity: int) -> None:
        self.most, self.capacity = max(1, tokens), capacity
        self.history: deque[set[int]] = deque()

    @property
    def resident(self) -> set[int]:
        return set().union(*self.history)

    def step(self, kept: set[int]) -> None:
        self.history.append(kept)
        while len(self.history) > self.most or len(self.resident) > self.capacity:
            self.history.popleft()


@QUICK
@given(tokens=TOKENS, sequence=SEQUENCES)
def test_with_room_enough_the_last_k_tokens_stay(tokens: int, sequence: list[set[int]]) -> None:
    window = Window(NEURONS, tokens, NEURONS)
    for i, active in enumerate(sequence):
        step = move_on(window, active)
        assert as_set(window.held) == used_by_last(sequence[: i + 1], tokens)
        assert len(step.overflow) == 0


@QUICK
@given(tokens=st.integers(1, 6), capacity=CAPACITIES, sequence=SEQUENCES)
def test_only_what_is_missing_is_loaded_and_only_what_leaves_is_dropped(
    tokens: int, capacity: int, sequence: list[set[int]]
) -> None:
    window = Window(NEURONS, tokens, capacity)
    for active in sequence:
        before = as_set(window.held)
        step = move_on(window, active)
        after, overflow = as_set(window.held), as_set(step.overflow)
        assert as_set(step.load) == active - overflow - before
        assert as_set(step.drop) == (before | active) - overflow - after


@QUICK
@given(capacity=CAPACITIES, sequence=SEQUENCES)
def test_window_of_no_tokens_drops_all_it_had_and_loads_all_it_needs(capacity: int, sequence: list[set[int]]) -> None:
    window = Window(NEURONS, 0, capacity)
    for active in sequence:
        before = as_set(window.held)
        step = move_on(window, active)
        assert as_set(step.drop) == before
        assert as_set(step.load) == as_set(window.held) == active - as_set(step.overflow)


@QUICK
@given(tokens=TOKENS, capacity=CAPACITIES, sequence=SEQUENCES)
@example(tokens=3, capacity=2, sequence=[{0}, {1}, {0, 1}, {2}])
@example(tokens=3, capacity=3, sequence=[{0, 1}, {1, 2}, {3}, {0, 1, 2, 3}])
def test_with_too_little_room_the_oldest_tokens_leave_first(
    tokens: int, capacity: int, sequence: list[set[int]]
) -> None:
    window, plain = Window(NEURONS, tokens, capacity), PlainWindow(tokens, capacity)
    for active in sequence:
        plain.step(active - as_set(move_on(window, active).overflow))
        assert as_set(window.held) == plain.resident


@QUICK
@given(tokens=TOKENS, capacity=CAPACITIES, sequence=SEQUENCES)
def test_size_is_what_is_resident_and_never_above_capacity(
    tokens: int, capacity: int, sequence: list[set[int]]
) -> None:
    window = Window(NEURONS, tokens, capacity)
    for active in sequence:
        move_on(window, active)
        assert window.size == len(window.held) <= capacity


@QUICK
@given(tokens=TOKENS, capacity=CAPACITIES, sequence=SEQUENCES)
def test_overflow_is_what_cannot_fit_and_nothing_that_was_there(
    tokens: int, capacity: int, sequence: list[set[int]]
) -> None:
    window = Window(NEURONS, tokens, capacity)
    for active in sequence:
        stays_from_before = as_set(window.held) if tokens else set()
        overflow = as_set(move_on(window, active).overflow)
        assert len(overflow) == max(0, len(active) - capacity)
        assert overflow <= active - stays_from_before
        assert active - overflow <= as_set(window.held)
        assert not overflow & as_set(window.held)


@QUICK
@given(tokens=TOKENS, capacity=CAPACITIES, sequence=WITH_CLEARING)
def test_memory_that_drops_and_then_loads_holds_what_the_window_says(
    tokens: int, capacity: int, sequence: list[set[int] | None]
) -> None:
    window, memory = Window(NEURONS, tokens, capacity), set[int]()
    for active in sequence:
        if active is AFTER_CLEARING:
            assert as_set(window.clear()) == memory
            memory = set()
        else:
            step = move_on(window, active)
            load, drop = as_set(step.load), as_set(step.drop)
            assert drop <= memory
            assert not load & (memory - drop)
            memory = (memory - drop) | load
        assert as_set(window.held) == memory


@QUICK
@given(tokens=TOKENS, capacity=CAPACITIES, sequence=SEQUENCES)
def test_a_neuron_is_dropped_and_loaded_at_once_only_where_nothing_is_kept(
    tokens: int, capacity: int, sequence: list[set[int]]
) -> None:
    window = Window(NEURONS, tokens, capacity)
    for active in sequence:
        before = as_set(window.held)
        step = move_on(window, active)
        reloaded = as_set(step.load) & as_set(step.drop)
        assert reloaded == (set() if tokens else before & active - as_set(step.overflow))


@QUICK
@given(tokens=TOKENS, capacity=CAPACITIES, sequence=SEQUENCES)
def test_residents_and_overflow_are_sorted(tokens: int, capacity: int, sequence: list[set[int]]) -> None:
    window = Window(NEURONS, tokens, capacity)
    for active in sequence:
        step = move_on(window, active)
        assert {part.dtype for part in (step.load, step.drop, step.overflow, window.held)} == {np.dtype(np.int64)}
        assert (np.diff(step.overflow) > 0).all()
        assert (np.diff(window.held) > 0).all()


@QUICK
@given(tokens=TOKENS, capacity=CAPACITIES, before=SEQUENCES, after=SEQUENCES)
def test_cleared_window_is_as_good_as_new(
    tokens: int, capacity: int, before: list[set[int]], after: list[set[int]]
) -> None:
    used, new = Window(NEURONS, tokens, capacity), Window(NEURONS, tokens, capacity)
    for active in before:
        move_on(used, active)
    there = used.held
    assert used.clear().tolist() == there.tolist()
    assert (used.size, len(used.held)) == (0, 0)
    for active in after:
        found, expected = move_on(used, active), move_on(new, active)
        assert all(np.array_equal(getattr(found, part), getattr(expected, part)) for part in ("load", "drop"))
        assert np.array_equal(found.overflow, expected.overflow)


@QUICK
@given(tokens=TOKENS, capacity=CAPACITIES, sequence=SEQUENCES)
def test_active_sets_of_the_caller_are_not_altered(tokens: int, capacity: int, sequence: list[set[int]]) -> None:
    window = Window(NEURONS, tokens, capacity)
    arrays = [np.array(sorted(active), np.int64) for active in sequence]
    for array in arrays:
        window.step(array)
    assert [array.tolist() for array in arrays] == [sorted(active) for active in sequence]


@pytest.mark.parametrize("tokens", range(7))
def test_repeating_a_token_reads_nothing_unless_nothing_is_kept(tokens: int) -> None:
    window, loads = Window(NEURONS, tokens, 4), []
    for _ in range(10):
        loads.append(len(move_on(window, {1, 3, 5}).load))
    assert loads == ([3, *[0] * 9] if tokens else [3] * 10)
