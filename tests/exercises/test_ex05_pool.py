"""Exercises 5.1 to 5.3: the preallocated pool."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flashlite.course.checks import expect, require, rng, same
from flashlite.engine.pool import Landing, Pool
from flashlite.storage.bundle import FFNShape

NEURONS, D_MODEL, CAPACITY = 80, 6, 50
NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Layer:
    """A layer's weights, and its neurons as rows [up | down | padding]; no two neurons are alike."""

    up: np.ndarray
    down: np.ndarray
    bias: np.ndarray
    rows: np.ndarray

    def pool(self) -> Pool:
        """An empty pool for this layer."""
        shape = FFNShape(NEURONS, D_MODEL, itemsize=4, alignment=64)
        return Pool(CAPACITY, shape, torch.float32, torch.from_numpy(self.bias))

    def product(self, x: Tensor, neurons: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        """These neurons' part of the FFN in float64. bias: of each of them, its own unless given."""
        up, down = self.up[neurons].astype(float), self.down[neurons].astype(float)
        hidden = x.numpy().astype(float) @ up.T + (self.bias[neurons] if bias is None else bias)
        return np.maximum(hidden, 0) @ down


def make_layer() -> Layer:
    """Random weights."""
    random = rng()
    up, down = random.standard_normal((2, NEURONS, D_MODEL)).astype(np.float32)
    rows = np.zeros((NEURONS, 16), np.float32)
    rows[:, :D_MODEL], rows[:, D_MODEL : 2 * D_MODEL] = up, down
    return Layer(up, down, random.standard_normal(NEURONS).astype(np.float32), rows.view(np.uint8))


def exchange(pool: Pool, layer: Layer, load: np.ndarray, drop: np.ndarray) -> Landing:
    """Drop neurons and read others."""
    landing = pool.place(load.copy(), drop.copy())
    rows = np.asarray(landing.rows)
    expect(rows.shape, load.shape, "shape of the rows to read into")
    unlike = len(set(rows.tolist()))
    require(unlike == len(rows), f"{unlike} rows for {len(rows)} neurons", f"{len(rows)}", "Each needs its own row.")
    inside = bool(np.all((rows >= 0) & (rows < CAPACITY)))
    require(inside, f"rows {rows.min(initial=0)} to {rows.max(initial=0)} to read into", f"0 to {CAPACITY - 1}")
    landing.buffer[rows] = layer.rows[load]
    pool.commit()
    return landing


def filled(layer: Layer, count: int) -> tuple[Pool, np.ndarray]:
    """A pool that holds so many random neurons, and these in the order of its rows."""
    pool = layer.pool()
    exchange(pool, layer, rng().permutation(NEURONS)[:count], NONE)
    return pool, pool.neurons()


def exchanges(count: int = 30) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What a window may ask for: load, drop, and the neurons held afterwards. What is dropped is not loaded again."""
    random, held = rng(), NONE
    for i in range(count):
        dropped = random.integers(len(held) // 2 + 1) if i % 3 else random.integers(min(3, len(held)) + 1)
        drop = random.permutation(held)[:dropped]
        room = CAPACITY - len(held) + len(drop)
        load = random.permutation(np.setdiff1d(np.arange(NEURONS), held))[: random.integers(min(room, 20) + 1)]
        held = np.concatenate([np.setdiff1d(held, drop), load])
        yield load, drop, held


def lying(pool: Pool, layer: Layer) -> np.ndarray:
    """Which neuron's weights lie in each used row, -1 for none."""
    neuron_of = {row.tobytes(): neuron for neuron, row in enumerate(layer.rows)}
    return np.array([neuron_of.get(row.tobytes(), -1) for row in pool._buffer[: pool.num_used]], np.int64)


def check_rows(pool: Pool, layer: Layer, held: np.ndarray, what: str, mistake: str = "") -> None:
    """The used rows must hold exactly these neurons, and the pool must know which row holds which.

    mistake: what it looks like if other weights lie there.
    """
    require(pool.num_used == len(held), f"{what}: self.num_used is {pool.num_used}", f"{len(held)}")
    found = lying(pool, layer)
    lie = np.sort(found)
    expect(lie, np.sort(held), f"{what}: neurons whose weights lie in the used rows, sorted", {mistake: lie})
    text = "What is known of a row must change with its neuron: self._note(neurons, rows)."
    known = pool.neurons()
    expect(known, found, f"{what}: self._neuron_of_row of the used rows", {text: known})
    bias, known = pool._bias[: len(held)].clone(), pool._row_of_neuron[found]
    noted = same(bias, layer.bias[found])  # self._note does all three
    where = f"{what}: self._row_of_neuron of the neurons held"
    expect(known, np.arange(len(held)), where, {} if noted else {text: known})
    expect(bias, layer.bias[found], f"{what}: self._bias of the used rows", {text: bias})


def check_stayed(pool: Pool, before: np.ndarray, drop: np.ndarray, what: str) -> None:
    """Rows below the new end whose neurons were not dropped must hold them still."""
    after = pool.neurons()[: len(before)]
    stays = ~np.isin(before[: len(after)], drop)
    moved = np.flatnonzero(stays & (before[: len(after)] != after))
    require(
        not len(moved), f"{what}: {len(moved)} rows moved without need", "0", "A neuron stays in its row if it can."
    )


@pytest.mark.points("5.1", 2)
def test_place_gives_rows_to_new_neurons() -> None:
    layer = make_layer()
    pool = layer.pool()
    for i, (load, drop, held) in enumerate(exchanges()):
        what = f"exchange {i}, {len(load)} to load, {len(drop)} to drop"
        earlier = pool.moved
        rows = exchange(pool, layer, load, drop).rows
        require(pool.num_used == len(held), f"{what}: self.num_used is {pool.num_used}", f"{len(held)}")
        text = known_elsewhere(pool, load, rows, pool.moved > earlier)
        known = pool._row_of_neuron[load]
        expect(rows, known, f"{what}: rows to read into, by self._row_of_neuron", {text: rows})
        check_rows(pool, layer, held, what)
        absent = np.setdiff1d(np.arange(NEURONS), held)
        stale = absent[pool._row_of_neuron[absent] != -1]
        known = f"{what}: neuron {stale[:1]} isn't held, but self._row_of_neuron gives {pool._row_of_neuron[stale[:1]]}"
        require(not len(stale), known, "-1", "A dropped neuron has no row any more.")


def known_elsewhere(pool: Pool, load: np.ndarray, rows: np.ndarray, moved: bool) -> str:
    """Why new neurons aren't known to be in the rows that are read into, if it can be told. moved: if rows were."""
    unlike = pool._row_of_neuron[load] != rows
    known = pool._row_of_neuron[load[unlike]]
    if (known == -1).all():
        return "A new neuron's row must be noted: self._note(load, rows)."
    if moved and np.array_equal(pool._neuron_of_row[known], load[unlike]):
        return "A row about to be read into was moved: let new neurons take the lowest free rows."
    return ""


@pytest.mark.points("5.1", 2)
def test_place_moves_a_row_only_where_more_are_dropped_than_loaded() -> None:
    layer, random = make_layer(), rng()
    for dropped, loaded in ((12, 12), (10, 15), (0, 9), (15, 6)):
        pool, before = filled(layer, 40)
        drop, load = random.permutation(before)[:dropped], np.setdiff1d(np.arange(NEURONS), before)[:loaded]
        exchange(pool, layer, load, drop)
        what = f"{loaded} to load, {dropped} to drop"
        most = max(0, dropped - loaded)
        text = "Let new neurons take the rows of dropped ones; only the holes that remain are filled."
        require(pool.moved <= most, f"{what}: moved {pool.moved} rows", f"at most {most}", text)
        check_stayed(pool, before, drop, what)


@pytest.mark.points("5.1", 1)
def test_place_refuses_to_overflow_and_changes_nothing_then() -> None:
    layer = make_layer()
    pool, before = filled(layer, 45)
    new, drop = np.setdiff1d(np.arange(NEURONS), before), before[5:8]
    content, bias = pool._buffer.copy(), pool._bias.clone()
    require(refuses(pool, new[:9], drop), "45 rows used, 3 to drop, 9 to load: accepted", "ValueError, of 50 rows")
    unchanged = {
        "Check whether the neurons fit before anything is changed.": (pool.neurons(), pool._buffer, pool._bias)
    }
    now = (pool.neurons(), pool._buffer, pool._bias)
    expect(now, (before, content, bias), "neurons, rows and biases after the refusal", unchanged)
    expect(pool._row_of_neuron[before], np.arange(45), "self._row_of_neuron after the refusal")
    full, held = filled(layer, 45)
    others = np.setdiff1d(np.arange(NEURONS), held)[:5]
    require(not refuses(full, others, NONE), "45 rows used, 5 to load: refused", "50 of 50 rows", "A pool may be full.")
    text = "The rows of dropped neurons are free for new ones."
    require(not refuses(pool, new[:8], drop), "45 rows used, 3 to drop, 8 to load: refused", "50 of 50 rows", text)


def refuses(pool: Pool, load: np.ndarray, drop: np.ndarray) -> bool:
    """Whether place raises ValueError."""
    try:
        pool.place(load, drop)
    except ValueError:
        return True
    return False


@pytest.mark.points("5.1", 1)
def test_reads_land_in_the_pool_itself_and_may_bring_back_what_was_dropped() -> None:
    layer = make_layer()
    pool, before = filled(layer, 30)
    address = pool._buffer.ctypes.data
    drop = rng().permutation(before)[:12]
    load, given = np.concatenate([drop[5:8], np.setdiff1d(np.arange(NEURONS), before)[:4]]), drop.copy()
    landing = pool.place(load, drop)
    expect((load[:3], drop), (given[5:8], given), "the caller's `load` and `drop` afterwards")
    same_memory = landing.buffer.ctypes.data == address == pool._matrix.data_ptr()
    require(same_memory, "reads land in other memory", "self._buffer", "The rows of the pool are the read buffers.")
    landing.buffer[landing.rows] = layer.rows[load]
    held = np.concatenate([np.setdiff1d(before, drop), load])
    known = pool._row_of_neuron[drop[5:8]]
    text = "Note what is dropped before what is loaded: a neuron may be in both."
    expect(known >= 0, np.ones(3), "neurons dropped and loaded in one call have a row", {text: known >= 0})
    check_rows(pool, layer, held, "neurons dropped and loaded in one call")


@pytest.mark.points("5.2", 2)
def test_holes_are_filled() -> None:
    layer, random = make_layer(), rng()
    for dropped in random.integers(1, CAPACITY, 12):
        pool, before = filled(layer, CAPACITY)
        drop = random.permutation(before)[:dropped]
        pool.place(NONE, drop)
        text = came_back(lying(pool, layer), before, drop)
        check_rows(pool, layer, np.setdiff1d(before, drop), f"{dropped} of {CAPACITY} dropped", text)


def came_back(found: np.ndarray, before: np.ndarray, drop: np.ndarray) -> str:
    """What it looks like if dropped neurons still lie in used rows. found, before: the neuron in each row."""
    still = np.isin(found, drop)
    if (found != before[: len(found)])[still].any():
        return "A row above the new end may be a hole itself: fill holes only with rows that are still needed."
    return "A hole below the new end was not filled: its dropped neuron still lies there." if still.any() else ""


@pytest.mark.points("5.2", 1)
def test_as_few_rows_move_as_possible() -> None:
    layer, random = make_layer(), rng()
    for dropped in (1, 5, 20, 35):
        pool, before = filled(layer, CAPACITY)
        drop = random.permutation(before)[:dropped]
        place_of = {neuron: row for row, neuron in enumerate(before.tolist())}
        end = CAPACITY - dropped
        needed = sum(place_of[neuron] < end for neuron in drop.tolist())
        pool.moved = earlier = int(random.integers(1, 99))  # rows that it moved before
        content = pool._buffer.copy()
        pool.place(NONE, drop)
        what = f"{dropped} of {CAPACITY} dropped"
        changed = int((pool._buffer != content).any(1).sum())
        text = "Only a hole below the new end needs a row from above it; every other row stays."
        require(changed == needed, f"{what}: {changed} rows changed", f"{needed}", text)
        mistakes = {
            "A hole at or above the new end costs nothing.": earlier + dropped,
            "Add the rows to those that were moved before.": needed,
            "The rows moved are not counted.": earlier,
        }
        expect(pool.moved, earlier + needed, f"{what}: self.moved, {earlier} before", mistakes)
        check_stayed(pool, before, drop, what)


@pytest.mark.points("5.2", 1)
def test_holes_at_the_end_move_nothing() -> None:
    layer = make_layer()
    for dropped in (1, 10, CAPACITY):
        pool, before = filled(layer, CAPACITY)
        pool.place(NONE, before[CAPACITY - dropped :])
        what = f"the last {dropped} rows of {CAPACITY} dropped"
        require(pool.moved == 0, f"{what}: moved {pool.moved} rows", "0")
        check_rows(pool, layer, before[: CAPACITY - dropped], what)


@pytest.mark.points("5.2", 1)
def test_moved_neurons_can_be_dropped_and_others_loaded() -> None:
    layer = make_layer()
    pool = layer.pool()
    address = pool._buffer.ctypes.data
    for i, (load, drop, held) in enumerate(exchanges()):
        exchange(pool, layer, load, drop)
        what = f"exchange {i}, {len(load)} to load, {len(drop)} to drop"
        check_rows(pool, layer, held, what)
    text = "The pool is allocated once."
    require(pool._buffer.ctypes.data == address, "self._buffer is new memory", "the same memory", text)


def used_pool(layer: Layer) -> Pool:
    """A pool whose rows are out of order, with former neurons still lying above those in use."""
    pool, before = filled(layer, 45)
    exchange(pool, layer, NONE, rng().permutation(before)[:20])
    return pool


@pytest.mark.points("5.3", 1)
def test_product_is_that_of_the_rows_in_use() -> None:
    layer = make_layer()
    pool = used_pool(layer)
    neurons, former = pool.neurons(), pool._neuron_of_row[:45]
    for tokens in (1, 3):
        x = torch.from_numpy(rng().standard_normal((tokens, D_MODEL)).astype(np.float32))
        up = layer.up[neurons[-1]]
        x[-1] = torch.from_numpy(up * (2 + 2 * abs(layer.bias[neurons[-1]])) / (up @ up))  # the last row fires
        given = x.clone()
        mistakes = {
            "Rows past self.num_used were multiplied: former neurons still lie there.": layer.product(x, former),
            "Row i needs the bias of the neuron that lies in it.": layer.product(x, neurons, layer.bias[:25]),
            "The up projection's bias is missing.": layer.product(x, neurons, np.zeros(25)),
        }
        expect(pool.product(x), layer.product(x, neurons), f"product of {tokens} tokens", mistakes, tolerance=1e-3)
        expect(x, given, "x afterwards")
    pool, neurons = filled(layer, 45)
    pool.place(NONE, neurons)
    x = torch.from_numpy(rng().standard_normal((3, D_MODEL)).astype(np.float32))
    expect(pool.product(x), np.zeros((3, D_MODEL)), "product of a pool without neurons")


class CopyCounter(TorchDispatchMode):
    """Counts the bytes of tensors that operations make in new memory, if as large as half of the weights."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.smallest, self.copied = pool.num_used * D_MODEL * 4, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it makes."""
        out = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in known]
        self.copied += sum(t.nbytes for t in made if t.nbytes >= self.smallest)
        return out


@pytest.mark.points("5.3", 1)
def test_product_multiplies_the_rows_where_they_lie() -> None:
    layer = make_layer()
    pool = used_pool(layer)
    x = torch.from_numpy(rng().standard_normal((1, D_MODEL)).astype(np.float32))
    with CopyCounter(pool) as counter:
        pool.product(x)
    text = "Slices are views; indexing with an array or mask, clone, cat and contiguous copy the weights."
    require(counter.copied == 0, f"copied {counter.copied} bytes of weights", "0 bytes", text)
    pool._buffer[: pool.num_used] = layer.rows[:25]
    expect(
        pool.product(x), layer.product(x, np.arange(25), pool._bias[:25].numpy()), "product after other weights landed",
        tolerance=1e-3,
    )  # fmt: skip
