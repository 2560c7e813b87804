"""Exercises 3.1 to 3.4: the sliding window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch

from flashlite.course.checks import Call, Wrong, diagnosed, expect, expect_each, require, rng
from flashlite.engine.window import LONGEST_UNION, Step, Window, largest_window, union_sizes

NEURONS, TOKENS = 200, 30


def active_sets(count: int = TOKENS, random: np.random.Generator | None = None) -> list[np.ndarray]:
    """Which neurons each token uses: like a real model's, most are used by the token before as well."""
    random, sets = random or rng(), []
    current = random.random(NEURONS) < 0.1
    for _ in range(count):
        renewed = random.random(NEURONS) < 0.3
        current = np.where(renewed, random.random(NEURONS) < 0.1, current)
        sets.append(np.flatnonzero(current))
    return sets


def union(sets: list[np.ndarray]) -> np.ndarray:
    """All neurons that these tokens use, sorted."""
    return np.unique(np.concatenate([*sets, np.zeros(0, np.int64)]))


def in_order(neurons: np.ndarray, what: str) -> np.ndarray:
    """Sorted neurons; raises Wrong if this is no array that can be used as an index."""
    kind = f"{type(neurons).__name__} of {getattr(neurons, 'dtype', 'objects')}"
    require(
        isinstance(neurons, np.ndarray) and neurons.dtype == np.int64, f"{what}: a {kind}", "a NumPy array of int64"
    )
    return np.sort(neurons)


def masks(texts: int, length: int) -> np.ndarray:
    """The neurons of each token of several texts: [texts * length, NEURONS] bool."""
    random = rng()
    mask = np.zeros((texts * length, NEURONS), bool)
    for text in range(texts):
        for i, active in enumerate(active_sets(length, random)):
            mask[text * length + i, active] = True
    return mask


def plain_sizes(
    mask: np.ndarray, length: int, stride: int = 0, join: Callable[..., set[int]] = set.union
) -> tuple[float, ...]:
    """s_agg by plain sets. stride: from one window to the next, 0 for windows that don't overlap."""
    used = [set(np.flatnonzero(token).tolist()) for token in mask]
    means = []
    for k in range(1, LONGEST_UNION + 1):
        begins = [b + i for b in range(0, len(used), length) for i in range(0, length - k + 1, stride or k)]
        means.append(float(np.mean([len(join(*used[begin : begin + k])) for begin in begins])))
    return tuple(means)


@pytest.mark.points("3.1", 1)
def test_union_sizes_of_several_texts() -> None:
    length = int(rng().integers(12, 20))
    mask = masks(3, length)
    sizes = plain_sizes(mask, length, 1)
    mistakes = {
        "Windows reach from one text into the next.": plain_sizes(mask, len(mask), 1),
        "Neurons that several of the k tokens use are counted more than once.": tuple(
            sizes[0] * k for k in range(1, LONGEST_UNION + 1)
        ),
        "Only windows that don't overlap were taken; every token begins one.": plain_sizes(mask, length),
        "Neurons that any of the k tokens uses count, not only those that all use.": plain_sizes(
            mask, length, 1, set.intersection
        ),
        "Each window has its first token alone: the union doesn't grow with k.": plain_sizes(
            mask, length, 1, lambda first, *others: first
        ),
        "These are shares of all neurons; s_agg is a number of neurons.": tuple(size / NEURONS for size in sizes),
        "The tuple must begin with s_agg(1).": sizes[1:],
    }
    expect(union_sizes(torch.from_numpy(mask), length), sizes, f"s_agg of 3 texts of {length} tokens", mistakes, 1e-3)


@pytest.mark.points("3.1", 1)
def test_union_sizes_of_texts_of_eight_tokens() -> None:
    mask = masks(2, LONGEST_UNION)
    sizes = plain_sizes(mask, LONGEST_UNION, 1)
    expect(union_sizes(torch.from_numpy(mask), LONGEST_UNION), sizes, "s_agg of texts of 8 tokens", tolerance=1e-3)


@pytest.mark.points("3.1", 1)
def test_union_sizes_of_silent_and_of_busy_layers() -> None:
    for fired in (False, True):
        mask = torch.full((24, NEURONS), fired)
        found = union_sizes(mask, 12)
        expect(found, (NEURONS * fired,) * LONGEST_UNION, f"s_agg where {'all' if fired else 'no'} neurons fire")
        require(isinstance(found, tuple), f"the sizes are a {type(found).__name__}", "a tuple")
        require(all(type(size) is float for size in found), f"sizes are {type(found[0]).__name__}s", "floats")
    mask = torch.from_numpy(masks(2, 12))
    before = mask.clone()
    union_sizes(mask, 12)
    require(torch.equal(mask, before), "the mask was changed", "no change", "A union was formed in place.")


@dataclass(frozen=True)
class Expected:
    """What one token must change, and what is in the window afterwards."""

    load: np.ndarray
    drop: np.ndarray
    after: np.ndarray


def plain_window(sets: list[np.ndarray], k: int, capacity: int = NEURONS, most: int = TOKENS) -> list[Expected]:
    """A window by plain sets. most: how many tokens may leave at once, to see what is wrong if they are too few."""
    tokens: list[np.ndarray] = []
    steps, before = [], union([])
    for active in sets:
        tokens.append(active)
        for _ in range(most):
            if len(tokens) > k or len(union(tokens)) > capacity:
                tokens.pop(0)
        after = union(tokens)
        steps.append(Expected(np.setdiff1d(active, before), np.setdiff1d(before, after), after))
        before = after
    return steps


def oldest_first(sets: list[np.ndarray], k: int) -> list[Expected]:
    """A window whose oldest token leaves before the new one is counted."""
    steps = []
    for i, active in enumerate(sets):
        before, between = union(sets[max(0, i - k) : i]), union(sets[max(0, i - k + 1) : i])
        after = np.union1d(between, active)
        steps.append(Expected(np.setdiff1d(active, between), np.setdiff1d(before, between), after))
    return steps


def check_steps(
    window: Window, sets: list[np.ndarray], right: list[Expected], wrong: dict[str, list[Expected]], what: str
) -> None:
    """Every step loads and drops what it must.

    wrong: what usual mistakes would do at each step; one of them is named if the window did all of that, which can't be
    told from the first step alone that goes wrong.
    """
    done, fault = list[Expected](), None
    for i, active in enumerate(sets):
        name, given = f"{what}, token {i}", active.copy()
        try:
            step = window.step(given)
            done.append(observed(step, window, name))
            if fault is None:
                check_step(done[-1], step, window, right[i], name)
                require(np.array_equal(given, active), f"{name}: active was changed", "no change")
        except Exception as error:
            fault = fault or error
        if len(done) <= i:
            break  # its other steps can't be told
    if isinstance(fault, Wrong):
        likely = [text for text, steps in wrong.items() if same_steps(done, steps)]
        if not likely and read_again(done, right):
            likely = ["Neurons already in DRAM were read again."]
        raise Wrong(diagnosed(str(fault), likely))
    if fault is not None:
        raise fault


def observed(step: Step, window: Window, what: str) -> Expected:
    """What a step did."""
    require(type(step).__name__ == "Step", f"{what}: step returned a {type(step).__name__}", "a Step")
    drop, load = in_order(step.drop, f"{what}: drop"), in_order(step.load, f"{what}: load")
    return Expected(load, drop, window.held.copy())


def check_step(found: Expected, step: Step, window: Window, right: Expected, what: str) -> None:
    """A step does what it must."""
    expect(found.drop, right.drop, f"{what}: neurons to drop")
    expect(found.load, right.load, f"{what}: neurons to load")
    expect(in_order(step.overflow, f"{what}: overflow"), union([]), f"{what}: neurons without room")
    expect(found.after, right.after, f"{what}: neurons in the window")
    expect(window.size, len(right.after), f"{what}: window.size")


def same_steps(some: list[Expected], others: list[Expected]) -> bool:
    """Whether two windows did the same at every step."""
    pairs = [
        pair
        for one, other in zip(some, others, strict=False)
        for pair in ((one.load, other.load), (one.drop, other.drop), (one.after, other.after))
    ]
    return len(some) == len(others) and all(np.array_equal(one, other) for one, other in pairs)


def read_again(done: list[Expected], right: list[Expected]) -> bool:
    """Whether the first step that goes wrong loads neurons that were there before it and that it doesn't drop."""
    before = union([])
    for step, expected in zip(done, right, strict=False):
        if not same_steps([step], [expected]):
            return len(np.intersect1d(step.load, np.setdiff1d(before, step.drop))) > 0
        before = expected.after
    return False


@pytest.mark.points("3.2", 1)
@pytest.mark.parametrize("k", [4, 1])
def test_step_loads_and_drops_only_the_difference(k: int) -> None:
    sets = active_sets()
    sets[7] = sets[8] = union([])  # tokens that use nothing
    right = plain_window(sets, k)
    wrong = {
        "The window is one token too long.": plain_window(sets, k + 1),
        "The window is one token too short.": plain_window(sets, k - 1),
        "No token ever leaves the window.": plain_window(sets, len(sets)),
        "Report what leaves: the step's drop holds all neurons that leave with a token.": [
            replace(step, drop=union([])) for step in right
        ],
        "The oldest token left before this one was counted: neurons that both use are read again.": oldest_first(
            sets, k
        ),
    }
    check_steps(Window(NEURONS, k, NEURONS), sets, right, wrong, f"k = {k}")


@pytest.mark.points("3.2", 2)
def test_oldest_tokens_leave_early_where_capacity_is_short() -> None:
    sets, k = active_sets(), 4
    capacity = max(map(len, sets)) + 2
    order, half = rng().permutation(NEURONS), capacity // 2
    for i, part in enumerate((order[:half], order[half:capacity], order[capacity : capacity + half])):
        sets[i] = np.sort(part)  # the first two fill the window, the third needs the first one's room
    for i in (10, 20):
        sets[i] = np.sort(rng().permutation(NEURONS)[:capacity])  # tokens that fill the window alone
    right = plain_window(sets, k, capacity)
    wrong = {
        "Only one token left where more had to, to respect the capacity.": plain_window(sets, k, capacity, 1),
        "The capacity was not respected.": plain_window(sets, k),
        "The window stays one neuron below its capacity.": plain_window(sets, k, capacity - 1),
        "The window may hold one neuron more than its capacity.": plain_window(sets, k, capacity + 1),
    }
    check_steps(Window(NEURONS, k, capacity), sets, right, wrong, f"k = {k}, capacity {capacity}")


@pytest.mark.points("3.2", 1)
def test_nothing_stays_where_the_window_has_no_tokens() -> None:
    sets = active_sets(8)
    befores = [union([]), *sets]
    right = [Expected(active, before, active) for before, active in zip(befores, sets, strict=False)]
    wrong = {"With self.tokens == 0 nothing stays, also nothing that both tokens use.": plain_window(sets, 1)}
    check_steps(Window(NEURONS, 0, NEURONS), sets, right, wrong, "tokens = 0")


@pytest.mark.points("3.2", 1)
def test_what_finds_no_room_is_overflow() -> None:
    sets, k = active_sets(), 3
    capacity = int(np.median([len(active) for active in sets])) - 2
    window, tokens, before = Window(NEURONS, k, capacity), list[np.ndarray](), union([])
    for i, active in enumerate(sets):
        step, what = window.step(active.copy()), f"k = {k}, capacity {capacity}, token {i} of {len(active)} neurons"
        overflow = in_order(step.overflow, f"{what}: overflow")
        expect(len(overflow), max(0, len(active) - capacity), f"{what}: size of the overflow")
        new = np.setdiff1d(active, before)
        require(bool(np.isin(overflow, new).all()), f"{what}: overflow has other neurons", "new ones of this token")
        kept = np.setdiff1d(active, overflow)
        tokens = [*tokens, kept][-k:]
        while len(union(tokens)) > capacity:
            tokens.pop(0)
        after = union(tokens)
        mistakes = {"What is overflow is not loaded.": new, "Neurons already in DRAM were read again.": kept}
        expect(in_order(step.load, f"{what}: load"), np.setdiff1d(new, overflow), f"{what}: neurons to load", mistakes)
        expect(in_order(step.drop, f"{what}: drop"), np.setdiff1d(before, after), f"{what}: neurons to drop")
        mistakes = {"What is overflow does not stay in the window.": np.union1d(after, overflow)}
        expect(window.held, after, f"{what}: neurons in the window", mistakes)
        expect(window.size, len(after), f"{what}: window.size")
        before = after


def sets_with_own_neurons(count: int) -> list[np.ndarray]:
    """Active sets of which each has a neuron that is in no other."""
    sets = active_sets(count)
    own = np.setdiff1d(np.arange(NEURONS), union(sets))
    return [np.union1d(active, own[i]) for i, active in enumerate(sets)]


def filled_window(sets: list[np.ndarray]) -> Window:
    """A window in which all these tokens are."""
    window = Window(NEURONS, len(sets), NEURONS)
    for active in sets:
        window.step(active)
    return window


STILL_THERE = "The token is still in self._history: take it out."


@pytest.mark.points("3.3", 1)
def test_only_the_oldest_tokens_own_neurons_leave() -> None:
    sets = sets_with_own_neurons(6)
    window = filled_window(sets)
    for i, oldest in enumerate(sets):
        expected = np.setdiff1d(oldest, union(sets[i + 1 :]))
        mistakes = {
            "Neurons that younger tokens still use were given up as well.": oldest,
            "The newest token was taken, not the oldest.": np.setdiff1d(sets[-1], union(sets[:-1])),
            "These are the neurons that stay.": np.intersect1d(oldest, union(sets[i + 1 :])),
        }
        before = window._uses[oldest].copy()
        found = in_order(window._forget_oldest(), f"token {i} of 6 leaves: result")
        left = len(window._history)
        text = STILL_THERE if left == 6 - i else ""
        require(left == 5 - i, f"token {i} of 6 leaves: {left} tokens in self._history afterwards", f"{5 - i}", text)
        if np.array_equal(window._uses[oldest], before - 1):
            mistakes["The counts went down, but neurons whose count is 0 only afterwards weren't returned."] = union([])
        else:
            mistakes["The counts of the token's neurons did not go down by one."] = union([])
        expect(found, expected, f"token {i} of 6 leaves: neurons that leave", mistakes)


@pytest.mark.points("3.3", 1)
def test_counts_size_and_history_stay_right() -> None:
    sets = sets_with_own_neurons(6)
    window = filled_window(sets)
    for i in range(6):
        window._forget_oldest()
        rest = sets[i + 1 :]
        uses = np.bincount(np.concatenate([*rest, union([])]), minlength=NEURONS)
        what = f"after token {i} of 6 left"
        mistakes: dict[str, object] = {STILL_THERE: len(rest) + 1}
        expect(len(window._history), len(rest), f"{what}: tokens in self._history", mistakes)
        mistakes = {
            "The newest token was taken, not the oldest.": np.bincount(np.concatenate(sets[:-1]), minlength=NEURONS),
            "The counts of the token's neurons did not go down.": np.bincount(np.concatenate(sets), minlength=NEURONS),
            "Neurons that younger tokens use must keep their count of these.": np.where(
                np.isin(range(NEURONS), sets[i]), 0, uses
            ),
        }
        expect(window._uses, uses, f"{what}: self._uses", mistakes)
        size = len(union(rest))
        mistakes = {
            "Only neurons that leave reduce self.size, not all that the token used.": len(union(sets[i:]))
            - len(sets[i]),
            "self.size was not reduced.": len(union(sets[i:])),
        }
        expect(window.size, size, f"{what}: self.size", mistakes)


@pytest.mark.points("3.3", 1)
def test_a_window_that_forgets_moves_on() -> None:
    sets, k = active_sets(12), 3
    sets[4] = union([])  # a token that uses nothing
    window = filled_window([active.copy() for active in sets[:2]])
    window._forget_oldest()
    left = len(window._history)
    require(left == 1, f"{left} of 2 tokens in self._history after one left", "1", STILL_THERE if left == 2 else "")
    check_steps(Window(NEURONS, k, NEURONS), sets, plain_window(sets, k), {}, f"step with k = {k}")
    given = [active.copy() for active in sets]
    window = filled_window(given)
    for _ in sets:
        window._forget_oldest()
    unchanged = all(map(np.array_equal, given, sets))
    require(unchanged, "an array of neurons in self._history was changed", "no change", "It belongs to the caller.")


def rising_sizes() -> list[float]:
    """s_agg of 8 windows, no two of them equal."""
    return np.cumsum(rng().uniform(2, 30, 8)).tolist()


def between_two_sizes() -> Call:
    """Calls of largest_window with room for a little more than a window needs."""
    sizes = rising_sizes()
    rows = [int(size) + 1 for size in sizes[:7]]  # above s_agg(k), not above s_agg(k + 1), which is 2 larger at least
    mistakes = {
        "This is the index of the size; the window is one token longer.": list(range(7)),
        "This is the first window that does not fit.": list(range(2, 9)),
    }
    what = f"windows with rows for a little more than each of {', '.join(f'{size:.1f}' for size in sizes[:7])} neurons"
    return Call(lambda: [largest_window(tuple(sizes), n) for n in rows], list(range(1, 8)), what, mistakes)


def just_enough() -> Call:
    """Calls of largest_window with room for just what a window needs."""
    sizes = [float(int(size)) for size in rising_sizes()]
    sizes[4:6] = [sizes[3], sizes[3]]  # three equal ones
    windows = [1, 2, 3, 6, 7, 8]
    mistakes = {
        "A window that fits exactly fits: <=, not <.": [sum(size < sizes[k - 1] for size in sizes) for k in windows],
        "This is the first window that does not fit.": [k + 1 for k in windows],
        "The last of equal sizes counts.": [sizes.index(sizes[k - 1]) + 1 for k in windows],
        "This is the index of the size; the window is one token longer.": [k - 1 for k in windows],
    }
    what = f"windows with rows for s_agg of {', '.join(map(str, windows))}"
    return Call(lambda: [largest_window(sizes, int(sizes[k - 1])) for k in windows], windows, what, mistakes)


@pytest.mark.points("3.4", 1)
def test_largest_window_that_fits() -> None:
    expect_each([between_two_sizes(), just_enough()])


@pytest.mark.points("3.4", 1)
def test_largest_window_if_none_or_all_fit() -> None:
    sizes = rising_sizes()
    for count in (8, 3, 1):
        given = sizes[:count]
        found = largest_window(given, int(sizes[7]) + 100)
        expect(found, count, f"window if all {count} sizes fit", {"Nothing is known about longer windows.": count + 1})
        require(type(found) is int, f"the window is a {type(found).__name__}", "an int")
        require(given == sizes[:count], "sizes was changed", "no change")
    for rows in (0, 1):
        expect(largest_window(sizes, rows), 0, f"window with {rows} rows", {"Not even one token fits.": 1})
    expect(largest_window((0.0, 0.0, 4.5), 0), 2, "window without rows, where two tokens use no neuron")
    expect_each([call for k in range(1, 8) for call in around(float(int(sizes[k - 1])), k)])


def around(size: float, k: int) -> list[Call]:
    """Calls of largest_window where s_agg(k) is a part of a neuron, or a whole one, above the rows that there are."""
    rows, text = int(size), "A part of a neuron needs a row as well: the sizes must not be rounded."
    part, whole = [size - 1] * (k - 1) + [size + 0.25, size + 9], [size + 1] * k + [size + 9]
    return [
        Call(
            partial(largest_window, part, rows),
            k - 1,
            f"window with {rows} rows, s_agg({k}) = {size + 0.25}",
            {text: k},
        ),
        Call(partial(largest_window, whole, rows), 0, f"window with one row less than s_agg(1) = {size + 1}"),
    ]
