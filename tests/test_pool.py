"""Both memories of neurons against a plain dict: what their rows hold, what moves, and what they multiply to."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from flashlite.engine.pool import Landing, Pool, RebuiltMatrix
from flashlite.storage.bundle import FFNShape, pack_bundles

Memory = Pool | RebuiltMatrix

NEURONS, D_MODEL = 20, 6
QUICK = settings(deadline=None, max_examples=60)
SOME = st.sets(st.integers(0, NEURONS - 1))
EXCHANGES = st.lists(st.tuples(SOME, SOME), max_size=10)  # load and drop, before they are cut to what is possible
CAPACITIES = st.integers(1, NEURONS)
BOTH_KINDS = pytest.mark.parametrize("kind", [Pool, RebuiltMatrix])
BOTH_DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@dataclass(frozen=True)
class Layer:
    """A layer's weights as published, and its neurons' bundles as they lie on flash."""

    up: Tensor
    down: Tensor
    bias: Tensor

    @property
    def shape(self) -> FFNShape:
        return FFNShape(NEURONS, D_MODEL, self.up.itemsize, alignment=64)

    @functools.cached_property
    def bundles(self) -> np.ndarray:
        return pack_bundles(self.up, self.down, self.shape.record_bytes)

    def memory(self, kind: type[Memory], capacity: int = NEURONS) -> Memory:
        return kind(capacity, self.shape, self.up.dtype, self.bias)


def make_layer(dtype: torch.dtype = torch.float32) -> Layer:
    """Random weights; no two neurons are alike."""
    rng = torch.Generator().manual_seed(0)
    sizes = ((NEURONS, D_MODEL), (D_MODEL, NEURONS), (NEURONS,))
    return Layer(*(torch.randn(size, generator=rng).to(dtype) for size in sizes))


LAYERS = {dtype: make_layer(dtype) for dtype in (torch.float32, torch.bfloat16)}
FP32 = LAYERS[torch.float32]


def array(neurons: set[int]) -> np.ndarray:
    return np.array(sorted(neurons), np.int64)


def land(landing: Landing, load: np.ndarray, layer: Layer = FP32) -> None:
    """What the drive does."""
    landing.buffer[landing.rows] = layer.bundles[load]


def possible(exchange: tuple[set[int], set[int]], resident: set[int], capacity: int) -> tuple[set[int], set[int]]:
    """Cut an exchange to what a window would ask for; what is dropped may be loaded again."""
    load, drop = exchange[0], exchange[1] & resident
    stays = resident - drop
    return set(sorted(load - stays)[: capacity - len(stays)]), drop


def carry_out(memory: Memory, load: set[int], drop: set[int], layer: Layer = FP32) -> None:
    """Drop neurons and load others."""
    land(memory.place(array(load), array(drop)), array(load), layer)
    memory.commit()


def held(memory: Memory) -> dict[int, bytes]:
    """What lies in the rows that are multiplied, by neuron; none may be there twice."""
    rows, neurons = memory._matrix.view(torch.uint8).numpy()[: memory.num_used], memory.neurons()
    assert len(rows) == len(neurons) == len(set(neurons.tolist())) == memory.num_used
    return {neuron: row.tobytes() for neuron, row in zip(neurons.tolist(), rows, strict=True)}


def bundles_of(neurons: set[int], layer: Layer = FP32) -> dict[int, bytes]:
    """What must be held."""
    return {neuron: layer.bundles[neuron].tobytes() for neuron in neurons}


def assert_product(memory: Memory, neurons: set[int], layer: Layer, seed: int = 0) -> None:
    """The product must be what these neurons give in fp64, but for a few roundings of its terms."""
    x = torch.randn(3, D_MODEL, generator=torch.Generator().manual_seed(seed)).to(layer.up.dtype)
    index = torch.from_numpy(array(neurons))
    up, down, bias = layer.up[index].double(), layer.down[:, index].double(), layer.bias[index].double()
    hidden = (x.double() @ up.T + bias).relu()
    terms = (x.double().abs() @ up.T.abs() + bias.abs()) @ down.T.abs()
    error = (memory.product(x).double() - hidden @ down.T).abs()
    assert (error <= 2 * torch.finfo(layer.up.dtype).eps * terms).all()


@BOTH_KINDS
@BOTH_DTYPES
@QUICK
@given(capacity=CAPACITIES, exchanges=EXCHANGES)
@example(capacity=NEURONS, exchanges=[(set(range(10)), set()), (set(), {0, 1, 2, 9}), ({0, 15}, {8, 5, 4, 3})])
@example(capacity=3, exchanges=[({0, 1, 2}, set()), ({0, 1, 2}, {0, 1, 2}), (set(), {0, 1, 2})])
def test_rows_hold_and_multiply_exactly_the_resident_neurons(
    kind: type[Memory], dtype: torch.dtype, capacity: int, exchanges: list[tuple[set[int], set[int]]]
) -> None:
    layer, resident = LAYERS[dtype], set[int]()
    memory = layer.memory(kind, capacity)
    for seed, exchange in enumerate(exchanges):
        load, drop = possible(exchange, resident, capacity)
        carry_out(memory, load, drop, layer)
        resident = (resident - drop) | load
        assert memory.num_used == len(resident)
        assert held(memory) == bundles_of(resident, layer)
        assert_product(memory, resident, layer, seed)


@QUICK
@given(capacity=CAPACITIES, exchanges=EXCHANGES)
def test_pool_moves_a_row_only_where_more_are_dropped_than_loaded(
    capacity: int, exchanges: list[tuple[set[int], set[int]]]
) -> None:
    memory, resident = FP32.memory(Pool, capacity), set[int]()
    for exchange in exchanges:
        load, drop = possible(exchange, resident, capacity)
        moved = memory.moved
        carry_out(memory, load, drop)
        assert 0 <= memory.moved - moved <= max(0, len(drop) - len(load))
        resident = (resident - drop) | load


@QUICK
@given(capacity=CAPACITIES, exchanges=EXCHANGES)
def test_rebuilding_moves_every_row(capacity: int, exchanges: list[tuple[set[int], set[int]]]) -> None:
    memory, resident = FP32.memory(RebuiltMatrix, capacity), set[int]()
    for exchange in exchanges:
        load, drop = possible(exchange, resident, capacity)
        moved = memory.moved
        carry_out(memory, load, drop)
        resident = (resident - drop) | load
        assert memory.moved - moved == len(resident)


@QUICK
@given(exchanges=EXCHANGES)
def test_pool_leaves_every_row_where_it_is_unless_the_end_passes_it(exchanges: list[tuple[set[int], set[int]]]) -> None:
    memory, resident = FP32.memory(Pool), set[int]()
    for exchange in exchanges:
        load, drop = possible(exchange, resident, NEURONS)
        before = memory.neurons().tolist()
        landing = memory.place(array(load), array(drop))
        after = memory.neurons().tolist()
        assert [after[row] for row in landing.rows] == sorted(load)
        assert all(after[row] == neuron for row, neuron in enumerate(before[: len(after)]) if neuron not in drop)
        land(landing, array(load))
        memory.commit()
        resident = (resident - drop) | load


@BOTH_KINDS
@QUICK
@given(capacity=CAPACITIES, exchanges=EXCHANGES, data=st.data())
def test_overflow_is_refused_and_changes_nothing(
    kind: type[Memory], capacity: int, exchanges: list[tuple[set[int], set[int]]], data: st.DataObject
) -> None:
    memory, resident = FP32.memory(kind, capacity), set[int]()
    for exchange in exchanges:
        load, drop = possible(exchange, resident, capacity)
        carry_out(memory, load, drop)
        resident = (resident - drop) | load
    drop = data.draw(st.sets(st.sampled_from(sorted(resident)))) if resident else set()
    too_many = capacity - len(resident - drop) + 1
    load = np.arange(too_many) % NEURONS
    before = (held(memory), memory.num_used, memory.moved)
    with pytest.raises(ValueError, match=f"{too_many} neurons don't fit .*{capacity} rows"):
        memory.place(load, array(drop))
    assert (held(memory), memory.num_used, memory.moved) == before
    assert_product(memory, resident, FP32)
    carry_out(memory, set(), resident)
    assert memory.num_used == 0


@BOTH_KINDS
@QUICK
@given(first=SOME, second=SOME, landed=st.booleans())
def test_cleared_memory_is_empty_and_can_be_filled_again(
    kind: type[Memory], first: set[int], second: set[int], landed: bool
) -> None:
    memory = FP32.memory(kind)
    if landed:
        carry_out(memory, first, set())
    else:  # reads failed
        memory.place(array(first), array(set()))
    memory.clear()
    assert (memory.num_used, len(memory.neurons())) == (0, 0)
    assert memory.product(torch.ones(2, D_MODEL)).tolist() == [[0.0] * D_MODEL] * 2
    carry_out(memory, second, set())
    assert held(memory) == bundles_of(second)
    assert_product(memory, second, FP32)


@BOTH_KINDS
def test_new_memory_is_empty(kind: type[Memory]) -> None:
    memory = FP32.memory(kind)
    assert (memory.num_used, memory.moved, len(memory.neurons())) == (0, 0, 0)
    assert memory.product(torch.ones(2, D_MODEL)).tolist() == [[0.0] * D_MODEL] * 2


@QUICK
@given(exchanges=EXCHANGES)
def test_pool_is_allocated_once_and_reads_land_where_it_multiplies(exchanges: list[tuple[set[int], set[int]]]) -> None:
    memory, resident = FP32.memory(Pool), set[int]()
    address = memory._matrix.data_ptr()
    for exchange in exchanges:
        load, drop = possible(exchange, resident, NEURONS)
        landing = memory.place(array(load), array(drop))
        assert landing.buffer.ctypes.data == memory._matrix.data_ptr() == address
        assert landing.buffer.strides[0] == memory._matrix.stride(0) * memory._matrix.itemsize
        land(landing, array(load))
        memory.commit()
        resident = (resident - drop) | load


def test_what_lands_in_the_pool_is_multiplied_without_a_copy() -> None:
    memory = FP32.memory(Pool)
    carry_out(memory, {3, 5}, set())
    landing = memory.place(array({7}), array({5}))
    memory.commit()
    land(landing, array({7}))
    assert_product(memory, {3, 7}, FP32)


@BOTH_KINDS
def test_padding_takes_no_part_in_the_product(kind: type[Memory]) -> None:
    memory, load = FP32.memory(kind), array(set(range(NEURONS)))
    landing = memory.place(load, array(set()))
    assert FP32.shape.record_bytes > 2 * FP32.shape.half_bytes
    landing.buffer[:] = 0xFF  # NaN
    landing.buffer[landing.rows, : 2 * FP32.shape.half_bytes] = FP32.bundles[load, : 2 * FP32.shape.half_bytes]
    memory.commit()
    assert_product(memory, set(range(NEURONS)), FP32)
